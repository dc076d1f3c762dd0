"""How the processes of a run find each other: `jax.distributed.initialize`, with one line if not.

In: the flags of main and the variables of SLURM, Open MPI, TPUs or one's own. Out: the cluster that
this process has joined; `ALONE` for a process by itself. No device is touched.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from dscint_jax.cluster.cluster import (
    ALONE,
    Cluster,
    FailureWatch,
    in_words,
    loopback_of,
    visible_gpus,
)
from tfds_builder.commandline.errors import UserError

HEARTBEAT_TIMEOUT_S = 20
"""A process that has died ends the others within about this time."""

LAUNCHERS = {
    "environment": ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", ""),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OmpiCluster"),
    # Only srun sets the first, and to 1 in a shell inside an allocation of several tasks.
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SlurmCluster"),
}
"""The variables of the number of processes and of this one's; JAX's class that knows the rest."""

CONNECT_S = 5.0
WAITING_LINE_EVERY_S = 20.0


def find_cluster(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: str,
) -> Cluster:
    """This process's place among those of its run; arguments as of `run_together`.

    On TPUs JAX finds the place only as it joins the others: then the count is 0.

    Raises:
      UserError: flags or environment contradict themselves.
    """
    flags = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    absent = [flag for flag, value in flags.items() if value is None]
    if distributed == "off":
        if len(absent) < len(flags):
            raise UserError("--distributed=off and --coordinator_address exclude each other")
        return ALONE
    if coordinator_address is not None and num_processes is not None and process_id is not None:
        return _place("flags", coordinator_address, num_processes, process_id)
    if len(absent) < len(flags):
        raise UserError(f"missing: {' and '.join(absent)}; {', '.join(flags)} go together")
    for kind, (count, index, detected) in LAUNCHERS.items():
        if os.environ.get(count):
            return _launched(kind, count, index, detected)
    return Cluster(0, 0, "TPU", host=socket.gethostname()) if _on_several_tpus() else ALONE


def join(cluster: Cluster, timeout_s: float, workdir: Path | None) -> Cluster:
    """Joins the other processes; before any device is touched.

    Args:
      cluster: as `find_cluster` gives it.
      timeout_s, workdir: as for `run_together`.

    Raises:
      UserError: some do not come, or the coordinator's name or port cannot be used.
    """
    # Processes on CPUs exchange gradients by it; on accelerators it is not asked.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments: dict[str, Any] = {
        # JAX ends the process where it gives up waiting, so it is not to be the first to do so.
        "initialization_timeout": int(timeout_s) + 60,
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_S,
    }
    if cluster.kind != "TPU":
        arguments |= {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.process_count,
            "process_id": cluster.process_index,
            "local_device_ids": _local_gpus(cluster),
            # It would give a process that is alone on its machine one GPU only.
            "cluster_detection_method": "deactivate",
        }
        if cluster.is_first:
            _check_port(cluster)
    with _without_proxies(), _noted(cluster, workdir) as note:
        # In a thread, as JAX does not hear a Ctrl-C meanwhile.
        pool = ThreadPoolExecutor(1)
        joined = pool.submit(jax.distributed.initialize, **arguments)
        pool.shutdown(wait=False)
        _wait(joined, cluster, timeout_s, note)
    # JAX's preemption service has taken it.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    if cluster.kind == "TPU":
        index, count = jax.process_index(), jax.process_count()
        cluster = dataclasses.replace(cluster, process_index=index, process_count=count)
        if count == 1:
            jax.distributed.shutdown()
            return ALONE
    return dataclasses.replace(cluster, watch=FailureWatch(cluster))


def _place(kind: str, address: str, count: int, index: int) -> Cluster:
    _host_and_port(address)
    if not 0 <= index < count:
        raise UserError(
            f"this is process {index} of {count}; they are numbered from 0 to {count - 1}"
        )
    here = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return Cluster(index, count, kind, address, here) if count > 1 else ALONE


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"the coordinator '{address}' is not HOST:PORT, such as node1:12345")
    return host.strip("[]"), int(port)


def _launched(kind: str, count: str, index: str, detected: str) -> Cluster:
    """The place that the variables of these names tell."""
    if kind == "environment" and not os.environ.get(index):
        # In an indexed job of Kubernetes another variable stands for it.
        index = "JOB_COMPLETION_INDEX" if "JOB_COMPLETION_INDEX" in os.environ else index
    if _number(count) == 1:
        return ALONE
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and detected:
        from jax._src import clusters

        port = os.environ.get("JAX_COORDINATOR_PORT")
        # Open MPI 5 does not tell what JAX looks for.
        with contextlib.suppress(KeyError, RuntimeError, ValueError):
            address = getattr(clusters, detected).get_coordinator_address(
                timeout_secs=None, override_coordinator_port=port
            )
    if not address:
        raise UserError(
            f"{count} is set, and nothing says where process 0 is; set the variable "
            f"JAX_COORDINATOR_ADDRESS, with mpirun by -x JAX_COORDINATOR_ADDRESS=HOST:PORT"
        )
    return _place(kind, address, _number(count), _number(index))


def _on_several_tpus() -> bool:
    """Whether this is a host of a TPU slice of several, or of one of which only JAX can tell."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    # JAX sets the variable where it finds no TPU as it is imported.
    return "TPU_SKIP_MDS_QUERY" not in os.environ and bool(importlib.util.find_spec("libtpu"))


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment is not a number")
    return int(text)


def _local_gpus(cluster: Cluster) -> list[int] | None:
    """The GPUs of this machine that this process takes; None for all that it sees.

    One process on a machine takes them all. Of several, each takes an equal share, unless whoever
    started them has given each its own already.

    Raises:
      UserError: the GPUs cannot be shared out evenly.
    """
    index, here = 0, 1
    if cluster.kind == "Open MPI":
        index = _number("OMPI_COMM_WORLD_LOCAL_RANK", "0")
        here = _number("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    elif cluster.kind == "SLURM":
        index = _number("SLURM_LOCALID", "0")
        here = -(-cluster.process_count // _number("SLURM_STEP_NUM_NODES", "1"))
    gpus = visible_gpus()
    # One GPU visible to each of several processes: each was given its own.
    if here == 1 or gpus <= 1 or os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    share, rest = divmod(gpus, here)
    if rest or not share:
        raise UserError(
            f"{here} processes on {cluster.host} cannot share its {gpus} GPUs evenly; start one "
            f"process a node, or one a GPU"
        )
    return [index * share + n for n in range(share)]


def _check_port(cluster: Cluster) -> None:
    """Raises UserError if the port is taken; two coordinators of JAX would share it unheard."""
    host, port = _host_and_port(cluster.coordinator)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
    except OSError as error:
        raise UserError(
            f"port {port} of the coordinator {host} cannot be used "
            f"({(error.strerror or str(error)).lower()}); choose another, with "
            f"--coordinator_address or the variable JAX_COORDINATOR_PORT"
        ) from None


@contextlib.contextmanager
def _noted(cluster: Cluster, workdir: Path | None) -> Iterator[Path | None]:
    """Leaves a file named after this process in the work directory while it waits for the others.

    After a failure it stays, as others may have yet to see that this process was there.
    """
    note = workdir / "started" / str(cluster.process_index) if workdir else None
    # A finished run may lie where nothing can be written.
    with contextlib.suppress(OSError):
        if note:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
    yield note
    with contextlib.suppress(OSError):
        if note:
            note.unlink()
            note.parent.rmdir()


def _wait(joined: Future, cluster: Cluster, timeout_s: float, note: Path | None) -> None:
    """Returns when all have joined; says now and then what is waited for.

    Raises:
      UserError: they have not, in time, or JAX refuses something.
    """
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            return joined.result(min(left, WAITING_LINE_EVERY_S))
        except TimeoutError:
            if left > WAITING_LINE_EVERY_S:
                print(f"waiting: {_why_apart(cluster, timeout_s, note)}", flush=True)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"JAX cannot join the processes of the run: {error}") from error
    raise UserError(
        f"{cluster.who} has not met the others at {cluster.coordinator or 'the TPU slice'} within "
        f"{timeout_s:g} s: {_why_apart(cluster, timeout_s, note)}; see their logs, or wait longer "
        f"with --initialization_timeout"
    )


def _why_apart(cluster: Cluster, timeout_s: float, note: Path | None) -> str:
    if cluster.kind == "TPU":
        return "not all have come"
    (name, port), node = _host_and_port(cluster.coordinator), cluster.host
    here = _started(timeout_s, note)
    missing = set(range(cluster.process_count)) - here if here else set()
    try:
        socket.create_connection((name, port), timeout=CONNECT_S).close()
    except socket.gaierror:
        return f"the coordinator's name {name} does not resolve on {node}"
    except OSError as error:
        if cluster.is_first:
            return f"{node} is not the coordinator {name}; name the host of process 0"
        if not isinstance(error, ConnectionRefusedError):
            return f"{(error.strerror or str(error)).lower()}; a firewall may be in the way"
        # Process 0 may have given up a moment ago, as others were missing.
        if not missing or 0 in missing:
            return _nobody_listens(name, node)
    if missing:
        return f"missing: {in_words(missing)}"
    return "not all have come, or not with the same number of processes and the same address"


def _started(timeout_s: float, note: Path | None) -> set[int]:
    """The processes whose notes lie beside this one's; empty where none can be read."""
    if note is None:
        return set()
    try:
        # Older ones are of an attempt that has given up.
        since = note.stat().st_mtime - timeout_s
        return {int(n.name) for n in note.parent.iterdir() if n.stat().st_mtime >= since}
    except OSError:
        return set()


def _nobody_listens(name: str, node: str) -> str:
    if not (address := loopback_of(name)):
        return "nobody listens there"
    return (
        f"nobody listens there; on {node} the name {name} resolves to {address}, which is "
        f"{node} itself: if process 0 runs on another machine, give that one's address, or "
        f"mend /etc/hosts"
    )


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides the variables of a web proxy, which JAX would ask for the way to the coordinator."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if "_proxy" in name.lower()}
    try:
        yield
    finally:
        os.environ.update(hidden)
