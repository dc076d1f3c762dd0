"""Ends a run at a step that was not finite, and keeps that step for `dscint_jax.replay`.

In: how many steps were taken, as the step itself tells. Out: an error, with the state before the
step and its batch in the work directory.
"""

from pathlib import Path

import grain

from dscint_jax.cluster import Cluster, barrier
from dscint_jax.finite import bad_step, rewound
from dscint_jax.input_pipeline import Scintigrams
from dscint_jax.replay import failure, write_dump
from dscint_jax.train_step import TrainState

WRITING_TIMEOUT_S = 3600.0
"""How long the other processes wait for the one that writes."""


class NonFinite:
    """Looks at every step that is logged.

    Args:
      workdir: the run's directory.
      cluster: the processes; the first writes.
      images: the training split.
      order: its images by step.
      seed: of the run.
    """

    def __init__(
        self,
        workdir: Path,
        cluster: Cluster,
        images: Scintigrams,
        order: grain.MapDataset,
        *,
        seed: int,
    ):
        self._workdir, self._cluster = workdir, cluster
        self._images, self._order, self._seed = images, order, seed

    def check(self, steps_taken: float, state: TrainState) -> None:
        """Raises DscintError where a step was not finite.

        Args:
          steps_taken: the metric `finite.STEPS_TAKEN`.
          state: after that step or a later one.
        """
        step = bad_step(steps_taken)
        if step is None:
            return
        batch = self._images.read(self._order[step - 1])
        if self._cluster.is_first:
            write_dump(
                self._workdir,
                step=step,
                state=rewound(state),
                batch=batch,
                class_counts=self._images.class_counts,
                seed=self._seed,
            )
        # A process that ends in an error ends the others, whatever they are writing.
        barrier(self._cluster, "non-finite step", WRITING_TIMEOUT_S)
        raise failure(self._workdir, step, batch)
