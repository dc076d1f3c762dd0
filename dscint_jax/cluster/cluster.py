"""What the processes of a run say to each other: barriers, facts to compare, texts, failures.

They speak through the key-value store that JAX's coordinator keeps in process 0; no device takes
part. Every wait has an end, and an error names the processes that did not come or differ.
"""

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from dscint_jax.config import Config, flat
from tfds_builder.commandline.command import installed_version
from tfds_builder.commandline.errors import UserError

PREFIX = "dscint"
FAILURES = f"{PREFIX}/failures"
TIMEOUT_S = 120.0
LOOK_EVERY_S = 1.0
LINGER_S = 5.0
SHOWN = 8
LOST_CONNECTION = re.compile(r"\bgloo\b|\bnccl|connection (closed|reset) by peer", re.IGNORECASE)
PACKAGES = ("dscint-jax", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin")
PACKAGES += ("jax-rocm7-plugin", "libtpu")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, as one of them sees them.

    Attributes:
      process_index, process_count: of this process, from 0; and of all, on all machines.
      kind: how they were started: 'alone', 'flags', 'environment', 'Open MPI', 'SLURM', 'TPU'.
      coordinator: HOST:PORT of process 0; empty for a process alone and on TPUs.
      host: what this process's machine is called.
      watch: ends this process when another fails; None for a process alone.
    """

    process_index: int
    process_count: int
    kind: str
    coordinator: str = ""
    host: str = ""
    watch: "FailureWatch | None" = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which alone writes and prints what is the whole run's."""
        return self.process_index == 0

    @property
    def who(self) -> str:
        """Its name in messages."""
        return f"process {self.process_index} on {self.host}"


ALONE = Cluster(0, 1, "alone")


class FailureWatch:
    """While active, ends this process with a line on stderr soon after another has failed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops looking; a failure of another process no longer ends this one."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            failure = _failure_elsewhere()
            # What all processes find, such as another config, this one says itself in a moment.
            if failure and not self._over.wait(LOOK_EVERY_S):
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    store().key_value_set(f"{PREFIX}/gone/{self._cluster.process_index}", "")
                sys.stdout.flush()
                who = self._cluster.who
                print(f"error: {who} ends because of {failure}", file=sys.stderr, flush=True)
                # The main thread may be inside a collective that nobody else will ever join.
                os._exit(1)


def barrier(cluster: Cluster, name: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when all processes have come to the barrier of this name.

    Raises:
      UserError: some have not, in time.
    """
    if cluster.process_count == 1:
        return
    try:
        store().wait_at_barrier(f"{PREFIX}/{name}", int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        # JAX lists who did not come, each with its number as the last of a line.
        listed = str(error).partition("timed out task names:")[2].partition("RPC:")[0]
        missing = [int(number) for number in re.findall(r"(\d+)\D*$", listed, re.MULTILINE)]
        absent = f"; missing: {in_words(missing)}" if missing else ""
        raise UserError(
            f"the processes did not all reach '{name}' within {timeout_s:g} s{absent}; see their "
            f"logs"
        ) from error


def gather(cluster: Cluster, name: str, value: str, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Every process's value, in the processes' order; all must call it.

    Raises:
      UserError: some have not, in time.
    """
    if cluster.process_count == 1:
        return [value]
    client, folder = store(), f"{PREFIX}/{name}/values"
    client.key_value_set(f"{folder}/{cluster.process_index}", value, allow_overwrite=True)
    barrier(cluster, name, timeout_s)
    found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}
    # None overwrites its value before all have read it.
    barrier(cluster, f"{name} (read)", timeout_s)
    return [found[index] for index in sorted(found)]


def preflight(
    cluster: Cluster,
    facts: Mapping[str, str],
    timeout_s: float = TIMEOUT_S,
    *,
    name: str = "preflight",
) -> None:
    """Checks that all processes are about to do the same.

    Args:
      cluster: the processes.
      facts: what must be equal, by the names that an error is to use.
      timeout_s: how long to wait for the others.
      name: of the point that all have to reach.

    Raises:
      UserError: the first fact that differs, in process 0's order; or some did not come in time.
    """
    text = json.dumps([cluster.who, dict(facts)])
    (first, expected), *others = map(json.loads, gather(cluster, name, text, timeout_s))
    for who, found in others:
        for fact in {**expected, **found}:
            here, there = expected.get(fact, "absent"), found.get(fact, "absent")
            if here != there:
                raise UserError(
                    f"{fact} is {here} in {first} and {there} in {who}; start all processes with "
                    f"the same command, files and software"
                )


def config_facts(config: Config) -> dict[str, str]:
    """A resolved config as facts, one a field: {'config.batch_size': '32', ...}."""
    return {name: json.dumps(value) for name, value in flat(config.to_dict(), "config.").items()}


def check_software(cluster: Cluster) -> None:
    """Checks what has to be equal before devices are touched; touches none.

    Where one process had no GPU or another plugin, JAX would wait in vain for its devices.

    Raises:
      UserError: versions, visible GPUs, platforms or numbers of processes differ.
    """
    facts = {
        # JAX lets processes pass that were told different numbers.
        "the number of processes": str(cluster.process_count),
        **{
            f"the version of {name}": installed_version(name) or "not installed"
            for name in PACKAGES
        },
        "JAX_PLATFORMS": jax.config.jax_platforms or "not set",  # pyright: ignore[reportAttributeAccessIssue]
        "the number of visible GPUs": str(visible_gpus()),
    }
    preflight(cluster, facts, name="software")


def check_devices(cluster: Cluster) -> None:
    """Touches the devices for the first time and checks that every process has as many.

    Raises:
      UserError: JAX finds no device; they differ; CPU processes cannot reach each other.
    """
    try:
        backend, count = jax.default_backend(), jax.local_device_count()
    except RuntimeError as error:
        raise UserError(f"JAX cannot use the devices of {cluster.host}: {error}") from error
    facts = {"JAX's backend": backend, "the number of devices": str(count)}
    preflight(cluster, facts, name="devices")
    if backend == "cpu":
        _check_own_names(cluster)


def _check_own_names(cluster: Cluster) -> None:
    """Raises UserError if a machine would tell the others a loopback address as its own.

    Gloo, which connects CPU processes, takes the address of the machine's own name. With one such
    machine it may connect by luck, as the side with the lower address waits; with two it cannot.
    """
    name = socket.gethostname()
    told = gather(cluster, "addresses", json.dumps([name, loopback_of(name)]))
    address_of = dict(map(json.loads, told))
    for host, address in address_of.items():
        if address and len(address_of) > 1:
            raise UserError(
                f"on {host} its own name resolves to {address}, under which no other machine "
                f"finds it; in its /etc/hosts remove {host} from the line of {address}"
            )


def loopback_of(host: str) -> str:
    """A loopback address that the name has here, if it has no other ones; else empty."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    addresses = [str(address[4][0]).partition("%")[0] for address in found]
    return addresses[0] if all(ipaddress.ip_address(a).is_loopback for a in addresses) else ""


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """How many NVIDIA GPUs this process sees, told without starting CUDA."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        named = [name.strip() for name in listed.split(",") if name.strip()]
        return len(named[: named.index("-1")] if "-1" in named else named)
    return sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def cause_elsewhere(cluster: Cluster, error: BaseException) -> BaseException:
    """An error that only says that another process is gone, as one line; any other as it is."""
    # JAX raises them as ValueError or RuntimeError, in the words of the library that connects.
    if isinstance(error, UserError) or not LOST_CONNECTION.search(str(error)):
        return error
    if failure := _failure_elsewhere():
        return UserError(f"{cluster.who} ends because of {failure}")
    # A process that was killed says nothing itself.
    return UserError(
        f"{cluster.who} has lost its connection to another process; see the others' logs for why "
        f"that one ended"
    )


def publish_failure(cluster: Cluster, reason: str) -> None:
    """Tells the other processes that this one ends in an error, so that they end too.

    Process 0 waits a moment: with it the store would be gone before they could read.
    """
    client = store()
    try:
        client.key_value_set(f"{FAILURES}/{cluster.process_index}", f"{cluster.who}: {reason}")
        deadline = time.monotonic() + LINGER_S
        while cluster.is_first and time.monotonic() < deadline:
            gone = client.key_value_dir_get(f"{PREFIX}/gone") + client.key_value_dir_get(FAILURES)
            if len({key.rpartition("/")[2] for key, _ in gone}) == cluster.process_count:
                # They say so just before they end, and JAX aborts those that are still there.
                time.sleep(LOOK_EVERY_S)
                break
            time.sleep(LOOK_EVERY_S / 10)
    except jax.errors.JaxRuntimeError:
        # The coordinator is gone; with it, JAX ends the others.
        return


def store() -> Any:
    """JAX's client of the key-value store; there is one once the processes have met."""
    # JAX offers the store to libraries under this private name alone; Orbax uses it too.
    from jax._src import distributed

    return distributed.global_state.client


def in_words(indices: Iterable[int]) -> str:
    """'processes 1, 2, 5'; of many the first ones."""
    indices = sorted(indices)
    shown = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
    return f"process{'es' if len(indices) > 1 else ''} {shown}"


def _failure_elsewhere() -> str:
    """What a process that ends in an error has told the others; empty if none has."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if failures := store().key_value_dir_get(FAILURES):
            return failures[0][1]
    return ""
