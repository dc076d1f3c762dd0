"""Deep learning on whole-body bone scintigraphy in JAX and Flax."""

import importlib.util

# Told in one line, which Python shows without a traceback where a command was asked for.
if importlib.util.find_spec("flax") is None:
    raise ModuleNotFoundError(
        "this Python lacks the packages that it needs; run ./run.sh setup once, then source "
        ".venv/bin/activate in every new terminal",
        name=__name__,
    )
