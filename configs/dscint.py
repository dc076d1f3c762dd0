"""Dscint at full size: 1024x256 scintigrams; or another network in its place.

    python -m dscint_jax.main --config configs/dscint.py --workdir runs/dscint \
        --config.data.dir=DATA_DIR
    python -m dscint_jax.main --config configs/dscint.py:resnet50 --workdir runs/resnet50 \
        --config.data.dir=DATA_DIR

`python -m dscint_jax.models` lists the networks. Dscint's counts of layers are the published ones,
all else is our choice: see the docstring of dscint_jax/models/dscint.py. Meant for a GPU; no time
and no score are given because none was measured yet.
"""

from dscint_jax.config import STUDIES, VIEWS, Config, Data, Optimizer

# Without normalisation layers these diverge at the learning rate of the others.
PLAIN_NETWORKS = ("alexnet", "vgg16", "vgg19")


def get_config(network: str = "dscint") -> Config:
    """What differs from the defaults of `dscint_jax.config.Config`, which explains every field."""
    return Config(
        model=network or "dscint",
        data=Data(records=STUDIES if network == "dual_view" else VIEWS),
        optimizer=Optimizer(learning_rate=1e-4 if network in PLAIN_NETWORKS else 1e-3),
    )
