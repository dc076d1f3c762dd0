"""The training state and the two steps: pure functions of (state, batch), free of input and output.

A batch is a dict of arrays: `counts` (batch, height, width, 1) int32, `scale` (batch,) float32 in
counts a pixel, `label` (batch,) int32 and, for evaluation, `mask` (batch,) bool: False where the
batch was padded. Of studies, `counts` (batch, view, height, width, 1) and `scale` (batch, view).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dscint_jax.augment import Augmentation, augment_counts, augment_images, normalise
from dscint_jax.metrics import ConfusionMatrix
from dscint_jax.models import AttentionMaps
from dscint_jax.random_streams import stream_key

Batch = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes; what a checkpoint holds.

    Attributes:
      step: steps taken.
      params: trained parameters.
      statistics: what the network gathers besides (BatchNorm's running mean and variance).
      optimizer: state of the optax transformation.
    """

    step: Int[Array, ""]
    params: nnx.State
    statistics: nnx.State
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the steps need besides state and batch; constant over a run.

    Attributes:
      training, inference: the network's structure, in the two modes it differs in.
      optimizer: gradient transformation.
      augmentation: ranges of the random transformations.
      class_weights: factor of each class in the loss.
      label_smoothing: share of the target spread over all classes.
      clip: upper limit of a normalised pixel.
      seed: of the random streams.
    """

    training: nnx.GraphDef
    inference: nnx.GraphDef
    optimizer: optax.GradientTransformation
    augmentation: Augmentation
    class_weights: tuple[float, ...]
    label_smoothing: float
    clip: float
    seed: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluated batch gives.

    Attributes:
      confusion: counts over the images whose mask is True.
      loss: sum of the cross-entropies of the same images, nats, without class weights.
      predicted: the class of the largest logit of every image, padding too.
      probabilities: softmax of the same.
    """

    confusion: ConfusionMatrix
    loss: Float[Array, ""]
    predicted: Int[Array, "batch"]
    probabilities: Float[Array, "batch classes"]


def split_network(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.GraphDef, nnx.State, nnx.State]:
    """Takes a network apart: training structure, inference structure, parameters, statistics."""
    model.eval()
    inference, _, _ = nnx.split(model, nnx.Param, ...)
    model.train()
    training, params, statistics = nnx.split(model, nnx.Param, ...)
    return training, inference, params, statistics


def train_step(
    state: TrainState, batch: Batch, *, recipe: Recipe
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step; returns the next state and the batch's loss, accuracy, gradient norm."""
    # Image i draws from the i-th key, so the result does not depend on how the batch is sharded.
    moves, counts = (
        jax.random.split(stream_key(recipe.seed, stream, state.step), len(batch["label"]))
        for stream in ("augment", "counts")
    )
    counts, scale = augment_counts(counts, batch["counts"], batch["scale"], recipe.augmentation)
    images = normalise(counts, scale, clip=recipe.clip)
    images = augment_images(moves, images, recipe.augmentation)
    dropout_key = stream_key(recipe.seed, "dropout", state.step)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[nnx.State, jax.Array]]:
        # A copy, because BatchNorm may not write into variables of the outer trace.
        model = nnx.merge(recipe.training, params, state.statistics, copy=True)
        logits = model(images, rngs=nnx.Rngs(dropout=dropout_key))
        _, _, statistics = nnx.split(model, nnx.Param, ...)
        loss = classification_loss(
            logits, batch["label"], jnp.array(recipe.class_weights), recipe.label_smoothing
        )
        return loss.mean(), (statistics, logits)

    (loss, (statistics, logits)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    updates, optimizer = recipe.optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss,
        "accuracy": (logits.argmax(-1) == batch["label"]).mean(),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, params, statistics, optimizer), metrics


def eval_step(
    params: nnx.State, statistics: nnx.State, batch: Batch, *, recipe: Recipe
) -> Evaluation:
    """Evaluates one batch, without augmentation and with the running statistics."""
    model = nnx.merge(recipe.inference, params, statistics, copy=True)
    images = normalise(batch["counts"], batch["scale"], clip=recipe.clip)
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return Evaluation(
        ConfusionMatrix.from_model_output(logits, batch["label"], batch["mask"]),
        jnp.where(batch["mask"], loss, 0.0).sum(),
        logits.argmax(-1),
        jax.nn.softmax(logits),
    )


def attention_step(
    params: nnx.State, statistics: nnx.State, batch: Batch, *, recipe: Recipe
) -> AttentionMaps:
    """What the network's attention weighs in one batch; empty maps of one that has none."""
    model = nnx.merge(recipe.inference, params, statistics, copy=True)
    if not hasattr(model, "attention_maps"):
        return AttentionMaps()
    return model.attention_maps(normalise(batch["counts"], batch["scale"], clip=recipe.clip))


def classification_loss(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    class_weights: Float[Array, "classes"],
    label_smoothing: float,
) -> Float[Array, "batch"]:
    """Cross-entropy with smoothed targets, times the weight of the true class; nats."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets) * class_weights[labels]


def make_optimizer(
    schedule: Callable[[Any], Any], *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; what has one axis does not decay.

    So biases and scales of normalisation stay as they are; kernels and embeddings decay.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            schedule,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def warmup_cosine(peak: float, *, steps: int, warmup_steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak` over the warm-up, then a half cosine to 0."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup_steps, steps - 1), steps)
