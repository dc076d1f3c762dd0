"""The one exception for what a user can mend: config fields, work directories, data sets."""

import logging
import sys
from collections.abc import Callable


class DscintError(Exception):
    """A mendable failure. The message is one line: what is wrong, where, and what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a DscintError becomes one line on stderr and exit status 2."""
    # Orbax and TFDS log their inner life through absl; what a user must know, we say ourselves.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        main()
    except DscintError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
