"""From images and a label table to a TFDS data set of whole-body bone scintigrams."""

import importlib.util

# Told in one line, which Python shows without a traceback where a command was asked for.
if importlib.util.find_spec("array_record") is None:
    raise ModuleNotFoundError(
        "this Python lacks the packages that it needs; run ./run.sh setup once, then source "
        ".venv/bin/activate in every new terminal",
        name=__name__,
    )
