"""A network and a run so small that a test can train it: 64x16 images, three convolutions.

python -m dscint_jax.main --config tests/tiny.py --workdir ... --config.data.dir=...
"""

import importlib.util
from pathlib import Path

from dscint_jax.config import Config


def get_config() -> Config:
    path = Path(__file__).parent.parent / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    return quickstart.get_config().replaced(
        {
            "steps": 12,
            "batch_size": 8,
            "data.pool": 16,
            "model_options.widths": (8, 8, 16),
            "model_options.strides": (2, 1, 1),
            "model_options.pool_after": (2,),
            "model_options.attention_after": 2,
            "model_options.hidden": 8,
            "optimizer.name": "adamw",
            "optimizer.warmup_steps": 2,
            "log_every": 1,
            "evaluate_every": 4,
        }
    )
