"""The confusion matrix as a metric that batches and devices add up."""

import dataclasses

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Bool, Float, Int

from dscint_jax.pytree import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class ConfusionMatrix(clu_metrics.Metric):
    """Counts of (true class, predicted class); merging adds, so any batching gives the same."""

    counts: Int[Array, "true predicted"]

    @classmethod
    def zeros(cls, num_classes: int) -> "ConfusionMatrix":
        """The matrix of no image at all."""
        return cls(counts=jnp.zeros((num_classes, num_classes), jnp.int32))

    @classmethod
    def from_model_output(
        cls,
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"] | None = None,
        **_,
    ) -> "ConfusionMatrix":
        """Counts one batch; images whose `mask` is False are not counted."""
        classes = logits.shape[-1]
        weight = jnp.ones(labels.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
        true = jax.nn.one_hot(labels, classes, dtype=jnp.int32) * weight[:, None]
        predicted = jax.nn.one_hot(logits.argmax(-1), classes, dtype=jnp.int32)
        return cls(counts=true.T @ predicted)

    # In clu's hint both are of one type variable; here both are of this class.
    def merge(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, other: "ConfusionMatrix"
    ) -> "ConfusionMatrix":
        """The matrix of both sets of images."""
        return ConfusionMatrix(self.counts + other.counts)

    def compute(self) -> Int[Array, "true predicted"]:
        """The counts."""
        return self.counts
