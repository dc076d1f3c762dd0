"""The training and evaluation steps: pure functions of (state, batch), free of input and output.

A batch is a dict of arrays: `counts` (batch, height, width, 1) int32, `scale` (batch,) float32 in
counts a pixel, `label` (batch,) int32 and, for evaluation, `mask` (batch,) bool: False where the
batch was padded; of copies of images (protocol 'augmented') also `copy` (batch,) int32, see
`augment.apply_copies`. Of studies, `counts` is (batch, view, height, width, 1) and `scale` (batch,
view).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.metrics.passes import Evaluation, confusion_matrix
from dscint_jax.models import AttentionMaps
from dscint_jax.models.layers import DROPOUT_BY_EXAMPLE, Dropout
from dscint_jax.pytree import pytree
from dscint_jax.random_streams import stream_key
from dscint_jax.training.augment import Augmentation, apply_copies, augment_counts, augment_images
from dscint_jax.training.finite import guarded
from dscint_jax.training.losses import Loss, mix_pairs, partners
from dscint_jax.training.optimizers import update_ema
from dscint_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]


@pytree
@dataclasses.dataclass(frozen=True)
class NetworkMaps:
    """Where a network looks in a batch; None is what it has not.

    The last two are of a class: where the images speak for it, at least 0. What speaks against it
    is left out.

    Attributes:
      probabilities: softmax.
      attention: what its own attention weighs.
      grad_cam: on the grid of its last maps; of a network with `feature_maps` and `classify` (see
        `models`).
      gradient_input: on the images' pixels; of studies one map a view.
    """

    probabilities: Float[Array, "batch classes"]
    attention: AttentionMaps
    grad_cam: Float[Array, "batch *view rows columns"] | None
    gradient_input: Float[Array, "batch *view height width"]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What the steps need besides state and batch; constant over a run.

    Attributes:
      training, inference: the network's structure, in the two modes it differs in.
      optimizer: gradient transformation.
      augmentation: ranges of the random transformations.
      loss: of logits and labels, per example.
      clip: upper limit of a normalised pixel.
      seed: of the random streams.
      mixup: parameter of the Beta distribution that shares of mixed pairs are drawn from; 0 mixes
        nothing.
      ema: decay of the running mean of the parameters; 0 keeps none.
      accumulation: parts that a batch is computed in, one after the other.
      axis: name of the axis that the batch is divided over; None where one device has all of it.
    """

    training: nnx.GraphDef
    inference: nnx.GraphDef
    optimizer: optax.GradientTransformation
    augmentation: Augmentation
    loss: Loss
    clip: float
    seed: int
    mixup: float = 0.0
    ema: float = 0.0
    accumulation: int = 1
    axis: str | None = None


def split_network(
    model: nnx.Module, axis: str | None = None
) -> tuple[nnx.GraphDef, nnx.GraphDef, nnx.State, nnx.State]:
    """Takes a network apart: training structure, inference structure, parameters, statistics.

    Where training batches are divided over an axis, BatchNorm takes its statistics over all of
    them; GroupNorm and LayerNorm look at one example and stay.
    """
    model.eval()
    inference, _, _ = nnx.split(model, nnx.Param, ...)
    model.train()
    for _, module in nnx.iter_modules(model):
        if isinstance(module, (nnx.BatchNorm, Dropout)):
            module.axis_name = axis
    training, params, batch_stats = nnx.split(model, nnx.Param, ...)
    return training, inference, params, batch_stats


def train_step(
    state: TrainState, batch: Batch, *, spec: StepSpec
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step; returns the next state and the batch's loss, accuracy, gradient norm.

    Under `spec.axis` it runs on every device, on that device's rows of the batch; gradients are
    summed over all devices at once, and every device takes the same step, or none: see `finite`.
    """
    images = _augmented(batch, state.step, spec)
    share = _shares(len(images), state.step, spec)
    if share is not None:
        images = mix_pairs(images, share)
    examples = {"images": images, "label": batch["label"]}
    if share is not None:
        examples |= {"share": share, "other": partners(batch["label"])}

    gradients, batch_stats, metrics = _gradients(state, examples, spec)
    # Optax takes powers of the number of steps, which is an integer.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimizer = spec.optimizer.update(gradients, state.optimizer, state.params)
    # Optax gives back the type that it is given.
    params: Any = optax.apply_updates(state.params, updates)
    ema = state.ema and update_ema(state.ema, (params, batch_stats), state.step, spec.ema)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    new = TrainState(state.step + 1, params, batch_stats, optimizer, ema)
    return guarded(state, new, metrics)


def _augmented(
    batch: Batch, step: jax.Array, spec: StepSpec
) -> Float[Array, "batch *view height width 1"]:
    # Row i of the whole batch draws from the i-th key, however the batch is divided.
    rows = _rows(len(batch["label"]), spec.axis)
    moves, losses = (
        jax.vmap(functools.partial(jax.random.fold_in, stream_key(spec.seed, stream, step)))(rows)
        for stream in ("augment", "counts")
    )
    counts, scale = augment_counts(losses, batch["counts"], batch["scale"], spec.augmentation)
    images = _prepared({**batch, "counts": counts, "scale": scale}, spec)
    return augment_images(moves, images, spec.augmentation)


def _shares(size: int, step: jax.Array, spec: StepSpec) -> Float[Array, " batch"] | None:
    """What every example keeps when it is mixed with its neighbour; None if none is."""
    if not spec.mixup:
        return None
    key = stream_key(spec.seed, "mixup", step)
    # One share a pair, so that the two mixtures of a pair are each other's reverse.
    pairs = _rows(size, spec.axis)[::2] // 2

    def draw(pair: jax.Array) -> jax.Array:
        return jax.random.beta(jax.random.fold_in(key, pair), spec.mixup, spec.mixup)

    return jnp.repeat(jax.vmap(draw)(pairs), 2)


def _gradients(
    state: TrainState, examples: Batch, spec: StepSpec
) -> tuple[nnx.State, nnx.State, dict[str, jax.Array]]:
    """Mean gradients over the whole batch, the new statistics, and the batch's metrics."""
    key = stream_key(spec.seed, "dropout", state.step)

    def loss_fn(
        params: nnx.State, batch_stats: nnx.State, part: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[nnx.State, jax.Array]]:
        # A copy, because BatchNorm may not write into variables of the outer trace.
        model = nnx.merge(spec.training, params, batch_stats, copy=True)
        logits = model(part["images"], rngs=_dropout_streams(key, spec.axis))
        _, _, batch_stats = nnx.split(model, nnx.Param, ...)
        loss = spec.loss(logits, part["label"])
        if "share" in part:
            other = spec.loss(logits, part["other"])
            loss = part["share"] * loss + (1 - part["share"]) * other
        return loss.mean(), (batch_stats, (logits.argmax(-1) == part["label"]).mean())

    def add(sums: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        total, batch_stats = sums
        (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, part[1], jax.random.fold_in(key, part[0])
        )
        new = (gradients, {"loss": loss, "accuracy": accuracy})
        return (jax.tree.map(jnp.add, total, new), batch_stats), None

    parts = spec.accumulation
    if parts == 1:
        (total, batch_stats), _ = add(
            (_zeros(state.params), state.batch_stats), (jnp.int32(0), examples)
        )
    else:
        # Part m is every row i with i % parts == m: the same rows on any number of devices.
        divided = {
            name: jnp.moveaxis(values.reshape(-1, parts, *values.shape[1:]), 1, 0)
            for name, values in examples.items()
        }
        (total, batch_stats), _ = jax.lax.scan(
            add, (_zeros(state.params), state.batch_stats), (jnp.arange(parts), divided)
        )
        total = jax.tree.map(lambda value: value / parts, total)
    if spec.axis:
        total = _mean_over(total, spec.axis)
    return total[0], batch_stats, total[1]


def _zeros(params: nnx.State) -> Any:
    zero = jnp.zeros(())
    return jax.tree.map(jnp.zeros_like, params), {"loss": zero, "accuracy": zero}


def _rows(size: int, axis: str | None) -> Int[Array, " batch"]:
    """Which rows of the whole batch this device has."""
    first = jax.lax.axis_index(axis) * size if axis else 0
    return first + jnp.arange(size)


def _dropout_streams(key: jax.Array, axis: str | None) -> nnx.Rngs:
    """Keys for layers.Dropout, which draws by example, and for others, which draw by device."""
    if not axis:
        return nnx.Rngs(dropout=key)
    here = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return nnx.Rngs(dropout=here, **{DROPOUT_BY_EXAMPLE: key})


def _mean_over(tree: Any, axis: str) -> Any:
    """The mean over all devices, in one message however many arrays there are."""
    if jax.lax.axis_size(axis) == 1:
        return tree
    values, restore = jax.flatten_util.ravel_pytree(tree)
    return restore(jax.lax.pmean(values, axis))


def eval_step(
    params: nnx.State, batch_stats: nnx.State, batch: Batch, *, spec: StepSpec
) -> Evaluation:
    """Evaluates one batch, without augmentation and with the running statistics."""
    model = nnx.merge(spec.inference, params, batch_stats, copy=True)
    logits = model(_prepared(batch, spec))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return Evaluation(
        confusion_matrix(logits, batch["label"], batch["mask"]),
        jnp.where(batch["mask"], loss, 0.0).sum(),
        logits.argmax(-1),
        jax.nn.softmax(logits),
    )


def maps_step(
    params: nnx.State, batch_stats: nnx.State, batch: Batch, *, spec: StepSpec
) -> NetworkMaps:
    """Where the network looks in one batch, for the classes that `label` names.

    With y the logit of the class, before softmax:

    - Grad-CAM (Selvaraju et al. 2020, Int J Comput Vis 128:336, equations 1 and 2) is ReLU(sum_k
      a_k A_k), with A_k the k-th of the last maps and a_k the mean of dy / dA_k over the positions
      of a map. Each view of a study has means of its own;
    - gradient x input (Shrikumar et al. 2016, arXiv:1605.01713) is ReLU(x dy / dx) of each pixel x.

    In float32, with the running statistics, without dropout.
    """
    model: Any = nnx.merge(spec.inference, params, batch_stats, copy=True)
    images = _prepared(batch, spec)

    def of_class(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Images do not look at each other, so that the gradient of the sum is that of each.
        chosen = jnp.take_along_axis(logits, batch["label"][:, None], axis=1)
        return chosen.sum(), logits

    def gradient(logits: Callable[[jax.Array], jax.Array], x: jax.Array) -> Any:
        return jax.grad(lambda x: of_class(logits(x)), has_aux=True)(x)

    gradients, logits = gradient(model, images)
    gradient_input = nnx.relu((gradients * images).sum(-1))
    grad_cam, attention = None, AttentionMaps()
    if hasattr(model, "feature_maps") and hasattr(model, "classify"):
        maps = model.feature_maps(images)
        gradients, _ = gradient(lambda maps: model.classify(maps, images), maps)
        weights = gradients.astype(jnp.float32).mean((-3, -2), keepdims=True)
        grad_cam = nnx.relu((weights * maps.astype(jnp.float32)).sum(-1))
    if hasattr(model, "attention_maps"):
        attention = model.attention_maps(images)
    return NetworkMaps(jax.nn.softmax(logits), attention, grad_cam, gradient_input)


def _prepared(batch: Batch, spec: StepSpec) -> Float[Array, "batch *view height width 1"]:
    """What a network sees of a batch before any augmentation of this step."""
    images = normalise(batch["counts"], batch["scale"], clip=spec.clip)
    if "copy" not in batch:
        return images
    return apply_copies(images, batch["copy"], spec.augmentation)
