"""Several processes, on one machine or many, that train as one.

    run_together(train_in, distributed="auto", workdir=workdir)

In: what each process is to do, and how it was started (`joining`). Out: nothing; all end together:
normally, with an error (`cluster`), or after the same step (`agreed_stop`).
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax

from dscint_jax.cluster.agreed_stop import AgreedStop
from dscint_jax.cluster.cluster import (
    ALONE,
    Cluster,
    barrier,
    cause_elsewhere,
    check_devices,
    check_software,
    config_facts,
    gather,
    preflight,
    publish_failure,
)
from dscint_jax.cluster.joining import find_cluster, join
from dscint_jax.command import run_command

END_TIMEOUT_S = 600
"""How long a process that has finished waits for the others to finish."""


def run_together(
    main: Callable[[Cluster], None],
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: str = "auto",
    initialization_timeout_s: float = 60,
    workdir: Path | None = None,
) -> None:
    """Runs a command's `main` as `run_command` does, in all processes of the run.

    The processes end together: when `main` has returned, or raised SystemExit, in all of them; or
    when it has failed in one, which ends the others with status 1 and a line on stderr.

    Args:
      main: what to do; it gets the cluster, and no device has been touched before.
      coordinator_address, num_processes, process_id: HOST:PORT of process 0, how many there are on
        all machines, and which this is, from 0; the three go together.
      distributed: 'auto' asks the environment where these three are not given; 'off' runs alone.
      initialization_timeout_s: how long to wait for the other processes.
      workdir: a folder that all processes see, in which they note that they have started, so that
        an error can name who has not.
    """

    def find_and_run() -> None:
        place = find_cluster(coordinator_address, num_processes, process_id, distributed)
        if place is ALONE:
            main(ALONE)
        else:
            _run(main, place, initialization_timeout_s, workdir)

    run_command(find_and_run)


def leave(cluster: Cluster) -> None:
    """Ends the cluster once all processes have finished.

    Raises:
      UserError: some do not finish in time.
    """
    if cluster.watch is None:
        return
    # Until all are here, the failure of one must still end the others.
    barrier(cluster, "end", END_TIMEOUT_S)
    cluster.watch.close()
    jax.distributed.shutdown()


def _run(
    main: Callable[[Cluster], None], cluster: Cluster, timeout_s: float, workdir: Path | None
) -> None:
    try:
        cluster = join(cluster, timeout_s, workdir)
        check_software(cluster)
        check_devices(cluster)
        try:
            main(cluster)
        except SystemExit:
            leave(cluster)
            raise
        leave(cluster)
    except BaseException as error:
        # All have left together, as after a stop by a signal, or there are no others.
        if cluster is ALONE or (cluster.watch and not jax.distributed.is_initialized()):
            raise
        _end(cluster, error)


def _end(cluster: Cluster, error: BaseException) -> NoReturn:
    """Ends this process in an error as `run_command` would, and lets the others know."""
    if cluster.watch:
        cluster.watch.close()
    cause = cause_elsewhere(cluster, error) if cluster.watch else error

    def fail() -> NoReturn:
        raise cause

    status = 1
    try:
        run_command(fail)
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        traceback.print_exc()
    if cluster.watch:
        publish_failure(cluster, " ".join(str(cause).split()) or type(cause).__name__)
    for stream in (sys.stdout, sys.stderr):
        # A stream that could not be written is None, or fails again.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    # A normal exit would wait for the others, which wait for this process.
    os._exit(status if isinstance(status, int) and status else 1)
