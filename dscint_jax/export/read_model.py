"""A network from a model file: the weights that `dscint_jax.export` wrote, and what they mean.

In: a file of safetensors. Out: all that it takes to read images with the network as its own work
directory does, to the last bit.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors
from flax import nnx

from dscint_jax import models
from dscint_jax.config import Config
from dscint_jax.evaluate.restored import Chosen, TrainedNetwork, network_of
from dscint_jax.export.metadata import NOT_FITTED, weights_digest
from dscint_jax.input_pipeline import Scintigrams
from dscint_jax.mesh import data_mesh, replicate
from dscint_jax.training.experiment import make_experiment
from dscint_jax.weights.torch_layout import named_weights
from tfds_builder.commandline.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes:
      path: of the file.
      config: the recipe of the training, without places.
      step: of the checkpoint.
      classes: names, in the order of the probabilities.
      fingerprint: of the data set trained on.
      chosen: on validation images; None of a checkpoint that was not evaluated.
      tensors: the weights, by PyTorch's names and in its order of axes.
    """

    path: Path
    config: Config
    step: int
    classes: tuple[str, ...]
    fingerprint: str
    chosen: Chosen | None
    tensors: dict[str, np.ndarray]

    def network(self, images: Scintigrams) -> TrainedNetwork:
        """The network, with images that it is to see.

        Raises:
          UserError: the weights are not those of the network that the file names.
        """
        experiment = make_experiment(self.config, (1,) * len(self.classes))
        like = experiment.state_shapes
        weights = named_weights(like.params, like.batch_stats)
        wanted = {name: weight.shape for name, weight in weights.items()}
        held = {name: array.shape for name, array in self.tensors.items()}
        if differing := wanted.items() ^ held.items():
            name, _ = min(differing)
            raise UserError(
                f"{self.path} has not the weights of {self.config.model}: {name} differs"
            )
        filled = {weights[n].path: weights[n].from_torch(a) for n, a in self.tensors.items()}
        state = tuple(
            nnx.from_flat_state([(path, filled[path]) for path, _ in nnx.to_flat_state(part)])
            for part in (like.params, like.batch_stats)
        )
        params, batch_stats = replicate(state, data_mesh())
        return network_of(self.config, experiment, (params, batch_stats), images, step=self.step)


def read_model(path: Path) -> ModelFile:
    """Reads a model file.

    Raises:
      UserError: it cannot be read, is damaged, is another format's, or holds a network that is not
        of this package.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is damaged, or no safetensors file ({error}); --model takes a file that "
            f"python -m dscint_jax.export --format safetensors wrote"
        ) from None
    try:
        recipe, classes = json.loads(metadata["recipe"]), json.loads(metadata["classes"])
        if recipe["model"] not in models.NETWORKS:
            raise UserError(
                f"{path} holds the network {recipe['model']}, which is not of this package; "
                f"predict with its work directory"
            )
        config = Config.from_dict(recipe)
        found = ModelFile(
            path=path,
            config=config,
            step=int(metadata["step"]),
            classes=tuple(map(str, classes)),
            fingerprint=metadata["dataset_fingerprint"],
            chosen=_chosen(metadata),
            tensors=tensors,
        )
        digest = metadata["weights_sha256"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} was not written by this version of dscint_jax.export ({error}); export again"
        ) from None
    if digest != weights_digest(tensors):
        raise UserError(f"{path} is damaged: its weights are not those that were written")
    return found


def _chosen(metadata: dict[str, str]) -> Chosen | None:
    if metadata["temperature"] == NOT_FITTED:
        return None
    points = json.loads(metadata["least_confidence"])
    return Chosen(
        temperature=float(metadata["temperature"]),
        least_confidence={float(target): least for target, least in points.items()},
    )
