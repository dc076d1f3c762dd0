"""Several processes, on one machine or many, that train as one.

    run_together(lambda cluster: train(config, workdir, cluster=cluster), distributed="auto")

In: how the processes were started (flags, SLURM, Kubernetes, Open MPI, TPU; `launch`). Out: a
`Cluster`, or one line that says what is wrong (`rendezvous`, `agreement`). All end together:
normally, with an error, or after the same step (`stopping`). A process alone pays nothing.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax

from dscint_jax.cluster.agreement import (
    ALONE,
    Cluster,
    FailureWatch,
    agree,
    barrier,
    broadcast,
    cause_elsewhere,
    check_devices,
    check_software,
    config_facts,
    gather,
    preflight,
    publish_failure,
)
from dscint_jax.cluster.launch import (
    Launch,
    launch_of_environment,
    launch_of_flags,
    local_devices,
)
from dscint_jax.cluster.rendezvous import meet, wait_for_coordinator
from dscint_jax.cluster.stopping import AgreedStop
from dscint_jax.errors import DscintError, run_command

__all__ = [
    "ALONE",
    "AgreedStop",
    "Cluster",
    "agree",
    "barrier",
    "broadcast",
    "config_facts",
    "gather",
    "leave",
    "preflight",
    "run_together",
    "start",
]

INITIALIZATION_TIMEOUT_S = 60
HEARTBEAT_TIMEOUT_S = 20
"""A process that has died ends the others within about this time."""


END_TIMEOUT_S = 600
"""How long a process that has finished waits for the others to finish."""


def run_together(
    main: Callable[[Cluster], None],
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: str = "auto",
    initialization_timeout_s: float = INITIALIZATION_TIMEOUT_S,
) -> None:
    """Runs a command's `main` as `run_command` does, in all processes of the run.

    The processes end together: when `main` has returned, or raised SystemExit, in all of them; or
    when it has failed in one, which ends the others with status 1 and a line on stderr.

    Args:
      main: what to do; it gets the cluster.
      coordinator_address, num_processes, process_id, distributed, initialization_timeout_s: as
        `start` takes them.
    """
    cluster, failure = ALONE, ""

    def join_and_run() -> None:
        nonlocal cluster, failure
        launch = find_launch(coordinator_address, num_processes, process_id, distributed)
        try:
            cluster = _join(launch, initialization_timeout_s)
            _check(cluster)
            try:
                main(cluster)
            except SystemExit:
                leave(cluster)
                raise
            leave(cluster)
        except BaseException as error:
            # From here on this process says itself why it ends.
            if cluster.watch:
                cluster.watch.close()
                error = cause_elsewhere(cluster, error)
            failure = " ".join(str(error).split()) or type(error).__name__
            raise error

    try:
        run_command(join_and_run)
    except BaseException as error:
        if cluster.process_count == 1 or not jax.distributed.is_initialized():
            raise
        _fail(cluster, error, failure)


def start(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: str = "auto",
    initialization_timeout_s: float = INITIALIZATION_TIMEOUT_S,
) -> Cluster:
    """Joins the other processes of the run, if there are any; before any device is touched.

    Args:
      coordinator_address: HOST:PORT of process 0; this and the next two go together.
      num_processes: of the run, on all machines.
      process_id: of this process, from 0.
      distributed: 'auto' asks the environment where these three are not given; 'off' runs alone.
      initialization_timeout_s: how long to wait for the other processes.

    Returns:
      the cluster; `leave` ends it.

    Raises:
      DscintError: the processes do not find each other, or differ in software or devices.
    """
    launch = find_launch(coordinator_address, num_processes, process_id, distributed)
    cluster = _join(launch, initialization_timeout_s)
    _check(cluster)
    return cluster


def leave(cluster: Cluster) -> None:
    """Ends the cluster once all processes have finished.

    Raises:
      DscintError: some do not finish in time.
    """
    if cluster.process_count == 1:
        return
    # Until all are here, the failure of one must still end the others.
    barrier(cluster, "end", END_TIMEOUT_S)
    if cluster.watch:
        cluster.watch.close()
    jax.distributed.shutdown()


def find_launch(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: str,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """How this process was started; None if it runs alone. Arguments as of `start`.

    Raises:
      DscintError: flags or environment contradict themselves.
    """
    launch = launch_of_flags(coordinator_address, num_processes, process_id)
    if distributed == "off":
        if launch:
            raise DscintError("--distributed=off and --coordinator_address exclude each other")
        return None
    launch = launch or launch_of_environment(environment)
    return launch if launch and launch.process_count != 1 else None


def _join(launch: Launch | None, timeout_s: float) -> Cluster:
    if launch is None:
        return ALONE
    # Processes on CPUs exchange gradients by it; on accelerators it is not asked.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timeouts = {
        "initialization_timeout": max(int(timeout_s), 1),
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_S,
    }
    if launch.kind == "TPU":
        return _join_tpu(launch, timeouts)
    devices = local_devices(launch, os.environ)
    meet(launch, timeout_s, behind_service="KUBERNETES_SERVICE_HOST" in os.environ)
    if launch.process_index > 0:
        wait_for_coordinator(launch)
    try:
        with _without_proxies():
            jax.distributed.initialize(
                launch.coordinator,
                launch.process_count,
                launch.process_index,
                local_device_ids=devices,
                # It would give a process that is alone on its machine one GPU only.
                cluster_detection_method="deactivate",
                **timeouts,
            )
    except RuntimeError as error:
        raise DscintError(
            f"JAX cannot join the processes at {launch.coordinator}: {error}"
        ) from error
    _restore_sigterm()
    return Cluster(
        launch.process_index,
        launch.process_count,
        launch.kind,
        launch.coordinator,
        launch.node,
        FailureWatch(launch.process_index, f"process {launch.process_index} on {launch.node}"),
    )


def _join_tpu(launch: Launch, timeouts: Mapping[str, int]) -> Cluster:
    """A TPU slice, whose hosts JAX finds by itself."""
    try:
        jax.distributed.initialize(**timeouts)
    except (RuntimeError, ValueError) as error:
        raise DscintError(
            f"JAX cannot join the hosts of the TPU slice: {error}; --distributed=off runs alone"
        ) from error
    _restore_sigterm()
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        jax.distributed.shutdown()
        return ALONE
    who = f"process {index} on {launch.node}"
    return Cluster(index, count, launch.kind, "", launch.node, FailureWatch(index, who))


def _check(cluster: Cluster) -> None:
    if cluster.process_count > 1:
        check_software(cluster)
        check_devices(cluster)


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides the variables of a web proxy, which JAX would ask for the way to the coordinator."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if "_proxy" in name.lower()}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _restore_sigterm() -> None:
    """Gives SIGTERM back its meaning of before, which JAX's preemption service has taken."""
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _fail(cluster: Cluster, error: BaseException, failure: str) -> NoReturn:
    """Ends this process in an error, and lets the others know."""
    status = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    publish_failure(cluster, failure)
    for stream in (sys.stdout, sys.stderr):
        # A stream that could not be written is None, or fails again.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    # A normal exit would wait for the others, which wait for this process.
    os._exit(status if isinstance(status, int) and status else 1)
