"""Checkpoints: the one module that knows Orbax.

A checkpoint is two items: `model` (step, parameters, statistics), all that an evaluator restores,
and `optimizer`. Orbax writes into a temporary folder and renames it, so an interrupted save leaves
nothing under a step's name. The newest checkpoints and the best one by validation F-1 are kept.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from dscint_jax.errors import DscintError
from dscint_jax.train_step import TrainState

SELECTION_METRIC = "f1"


class Checkpointer:
    """Saves, lists and restores the checkpoints of one work directory.

    Args:
      workdir: the run's directory; checkpoints lie under `checkpoints/STEP`.
      keep_last: how many of the newest are kept beside the best.
      read_only: for a process that only restores.
    """

    def __init__(self, workdir: Path, *, keep_last: int = 1, read_only: bool = False):
        self._directory = workdir.absolute() / "checkpoints"
        if read_only and not self._directory.is_dir():
            raise DscintError(
                f"{workdir} holds no checkpoints; train first: python -m dscint_jax.main "
                f"--config ... --workdir {workdir}"
            )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                # Without it Orbax would not write the metrics, which the policy below needs.
                best_fn=_selection,
                preservation_policy=None
                if read_only
                else checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep_last),
                        checkpoint_managers.BestN(
                            n=1, get_metric_fn=_selection, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts saving in the background; `metrics` (validation) decide which one is the best."""
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(_model_items(state)),
                optimizer=ocp.args.StandardSave(state.optimizer),
            ),
            metrics=metrics,
            force=True,
        )

    def close(self) -> None:
        """Waits and frees the manager's threads."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation F-1; the later one of equals."""
        metrics = {step: self._manager.metrics(step) for step in self.steps()}
        scores = {step: _selection(m) for step, m in metrics.items() if m}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def choose_step(self, which: str) -> int:
        """Turns 'best', 'last' or a step number into the step of a checkpoint that exists.

        Raises:
          DscintError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise DscintError(f"{self._directory} holds no complete checkpoint; train first")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self.best_step()
            return steps[-1] if best is None else best
        if which.isdecimal() and int(which) in steps:
            return int(which)
        raise DscintError(
            f"--checkpoint {which}: {self._directory} holds 'best', 'last' and "
            f"{', '.join(map(str, steps))}"
        )

    def restore_state(self, step: int, like: TrainState) -> TrainState:
        """Restores everything, onto the devices and in the shapes of `like` (arrays or shapes)."""
        restored = self._restore(
            step,
            model=ocp.args.StandardRestore(_model_items(like)),
            optimizer=ocp.args.StandardRestore(like.optimizer),
        )
        model = restored["model"]
        return TrainState(
            model["step"], model["params"], model["statistics"], restored["optimizer"]
        )

    def restore_model(
        self, step: int, params: nnx.State, statistics: nnx.State
    ) -> tuple[nnx.State, nnx.State]:
        """Restores parameters and statistics only, in the shapes and shardings given."""
        sharding = jax.tree.leaves(params)[0].sharding
        like = {
            "step": jax.ShapeDtypeStruct((), "int32", sharding=sharding),
            "params": params,
            "statistics": statistics,
        }
        model = self._restore(step, model=ocp.args.StandardRestore(like))["model"]
        return model["params"], model["statistics"]

    def _restore(self, step: int, **items: ocp.args.StandardRestore) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except OSError as error:
            raise DscintError(
                f"checkpoint {self._directory / str(step)} cannot be read ({error}); delete it "
                f"or choose another"
            ) from error
        except (ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DscintError(
                f"checkpoint {self._directory / str(step)} does not fit this config's network or "
                f"optimizer: {reason}"
            ) from error


def completed_step(workdir: Path) -> int | None:
    """Step of the newest complete checkpoint of a run, without opening any of them."""
    folder = workdir / "checkpoints"
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    return max(steps, default=None)


def _selection(metrics: dict[str, float]) -> float:
    return metrics[SELECTION_METRIC]


def _model_items(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "statistics": state.statistics}
