"""The one exception for what a user can mend: bad files, manifests, options, data sets."""

import sys
from collections.abc import Callable


class DataError(Exception):
    """Bad input. The message is one line that names the file, field or row and says what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Runs a command line's `main`; a DataError becomes one line on stderr and exit status 2."""
    try:
        main()
    except DataError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
