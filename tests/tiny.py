"""A network and a run so small that a test can train it: 64x16 images, three convolutions.

python -m dscint_jax.main --config tests/tiny.py --workdir ... --config.data.dir=...
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    path = Path(__file__).parent.parent / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = quickstart.get_config()
    config.steps = 12
    config.batch_size = 8
    config.data.pool = 16
    config.model_options.widths = (8, 8, 16)
    config.model_options.strides = (2, 1, 1)
    config.model_options.pool_after = (2,)
    config.model_options.attention_after = 2
    config.model_options.hidden = 8
    config.optimizer.warmup_steps = 2
    config.log_every = 1
    config.evaluate_every = 4
    return config
