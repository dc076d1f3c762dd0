"""All processes of a run meet before JAX starts, so that what is wrong is said in one line.

JAX's own start ends the process where another is missing, and lets processes that count
differently pass. So each first says who it is on a plain connection to the coordinator's port;
process 0 waits for all, and tells all of them either to go on or what is wrong.

In: a process's place, and how long to wait. Out: nothing, or the DscintError to show.
"""

import contextlib
import dataclasses
import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from dscint_jax.cluster.launch import Launch
from dscint_jax.errors import DscintError

LONGEST_LINE = 65536
RESOLVE_S = 5.0
CONNECT_S = 5.0
PATIENCE_S = 0.2
GREETING_S = 2.0
WAITING_LINE_EVERY_S = 20.0
SHOWN = 8
FOREIGN_S = 10.0


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a process says of itself when it arrives."""

    process_index: int
    process_count: int
    host: str
    pid: int

    @property
    def who(self) -> str:
        """Its name in messages."""
        return f"process {self.process_index} on {self.host}"


def meet(launch: Launch, timeout_s: float, *, behind_service: bool = False) -> None:
    """Returns when all processes of the run are there, and only then.

    Args:
      launch: this process's place.
      timeout_s: how long to wait for the others.
      behind_service: the coordinator's name may appear late, and its address may not be one of
        process 0's machine, as in Kubernetes.

    Raises:
      DscintError: some do not arrive, count otherwise, or come twice; the coordinator's name or
        port cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    addresses = _resolve(launch, deadline if behind_service else time.monotonic() + RESOLVE_S)
    greeting = Greeting(launch.process_index, launch.process_count, launch.node, os.getpid())
    if launch.process_index == 0:
        if not behind_service:
            _check_own_address(launch, addresses)
        _receive(launch, greeting, deadline, timeout_s)
    else:
        check_loopback(launch, addresses, addresses_of(launch.node))
        _report(launch, greeting, deadline, timeout_s)


def wait_for_coordinator(launch: Launch) -> None:
    """Returns when JAX's coordinator listens, or after a while; JAX asks once a second only."""
    deadline = time.monotonic() + CONNECT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection((launch.host, launch.port), timeout=CONNECT_S).close()
            return
        time.sleep(PATIENCE_S / 4)


def addresses_of(host: str) -> list[str]:
    """The addresses that a host's name has on this machine; none if it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({address[4][0] for address in found})


def are_loopback(addresses: list[str]) -> bool:
    """Whether they lead nowhere but to this machine itself."""
    return bool(addresses) and all(
        ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses
    )


def check_loopback(launch: Launch, coordinator: list[str], own: list[str]) -> None:
    """Refuses a coordinator that is another machine and yet resolves to this one.

    The coordinator is taken for another machine if its name is not this machine's. There is one
    exception: where this machine's own name is a loopback address too, several names may stand for
    one machine, and the connection itself has to tell.

    Args:
      launch: of a process that is not process 0.
      coordinator, own: the addresses that both names have here.

    Raises:
      DscintError: with the host and what to mend.
    """
    if launch.host in (launch.node, "localhost") or launch.host in coordinator:
        return
    if are_loopback(coordinator) and not are_loopback(own):
        raise DscintError(
            f"on {launch.node} the coordinator's name {launch.host} resolves to "
            f"{coordinator[0]}, which is {launch.node} itself; in its /etc/hosts remove "
            f"{launch.host} from the line of {coordinator[0]}"
        )


def machine_identity() -> str:
    """The same text in processes that reach each other by loopback, and only in those."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return socket.gethostname()


def _resolve(launch: Launch, deadline: float) -> list[str]:
    while not (addresses := addresses_of(launch.host)):
        if time.monotonic() > deadline:
            raise DscintError(
                f"the coordinator's name {launch.host} does not resolve on {launch.node}; check "
                f"its spelling, or give process 0's address in numbers"
            )
        time.sleep(PATIENCE_S)
    return addresses


def _check_own_address(launch: Launch, addresses: list[str]) -> None:
    """Raises DscintError if process 0 is not where the others will look for it."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            return
    raise DscintError(
        f"process 0 runs on {launch.node}, which is not the coordinator {launch.host} "
        f"({', '.join(addresses)}); name the host of process 0 as coordinator"
    )


def _receive(launch: Launch, own: Greeting, deadline: float, timeout_s: float) -> None:
    """Process 0: waits for the others, then answers all of them."""
    arrived = {own.process_index: own}
    connections: dict[int, socket.socket] = {}
    answer = {"error": f"{own.who} was interrupted"}
    with _listening(launch) as server:
        try:
            while len(arrived) < own.process_count:
                greeting, connection = _next_greeting(
                    server, deadline, launch, own, arrived, timeout_s
                )
                connections[id(connection)] = connection
                _check_greeting(greeting, own, arrived.get(greeting.process_index))
                arrived[greeting.process_index] = greeting
                connections[greeting.process_index] = connections.pop(id(connection))
            for index, connection in connections.items():
                if _has_left(connection):
                    raise DscintError(f"{arrived[index].who} ended again during the start")
            answer = {"all": own.process_count}
        except DscintError as error:
            answer = {"error": str(error)}
            raise
        finally:
            # The others take the next one who listens there for JAX's coordinator.
            server.close()
            for connection in connections.values():
                with contextlib.suppress(OSError), connection:
                    connection.sendall(_line(answer))


def _listening(launch: Launch) -> socket.socket:
    """A listening socket on the coordinator's port, at all addresses, as JAX's will be."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", launch.port), family=family, backlog=4096, dualstack_ipv6=dual
        )
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise DscintError(
            f"port {launch.port} of the coordinator {launch.host} {reason}; choose another, with "
            f"--coordinator_address or the variable JAX_COORDINATOR_PORT"
        ) from None


def _next_greeting(
    server: socket.socket,
    deadline: float,
    launch: Launch,
    own: Greeting,
    arrived: Mapping[int, Greeting],
    timeout_s: float,
) -> tuple[Greeting, socket.socket]:
    """The next process that says who it is; whatever else connects is passed over."""
    while True:
        absent = sorted(set(range(own.process_count)) - set(arrived))
        left = deadline - time.monotonic()
        if left <= 0:
            raise DscintError(
                f"{len(arrived)} of {own.process_count} processes arrived within {timeout_s:g} s "
                f"at {launch.coordinator}; missing: {numbers(absent)}; see their logs, "
                f"or wait longer with --initialization_timeout"
            )
        server.settimeout(min(left, WAITING_LINE_EVERY_S))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if deadline - time.monotonic() > 0:
                print(f"waiting for {numbers(absent)} of {own.process_count}", flush=True)
            continue
        connection.settimeout(GREETING_S)
        try:
            return Greeting(**_read_line(connection)), connection
        except (OSError, TypeError):
            connection.close()


def _check_greeting(new: Greeting, own: Greeting, before: Greeting | None) -> None:
    if new.process_count != own.process_count:
        raise DscintError(
            f"{own.who} was told that there are {own.process_count} processes, {new.who} that "
            f"there are {new.process_count}; start all with the same number"
        )
    before = own if new.process_index == own.process_index else before
    # The same process comes again if its first connection broke.
    if before and before != new:
        raise DscintError(
            f"two processes call themselves process {new.process_index}, one on {before.host} "
            f"and one on {new.host}; give each its own number"
        )


def _report(launch: Launch, own: Greeting, deadline: float, timeout_s: float) -> None:
    """Any other process: says who it is and waits for process 0's answer."""
    reason, foreign_since = "no answer", None
    while (left := deadline - time.monotonic()) > 0:
        try:
            address = (launch.host, launch.port)
            with socket.create_connection(address, timeout=min(left, CONNECT_S)) as connection:
                connection.sendall(_line(dataclasses.asdict(own)))
                # Process 0's patience may end a little after this one's.
                connection.settimeout(max(deadline - time.monotonic(), 0.1) + GREETING_S)
                answer = _read_line(connection)
        except ConnectionRefusedError:
            reason = "nobody listens there"
        except TimeoutError:
            reason = "no answer; a firewall may be in the way"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        else:
            if answer.get("all") == own.process_count:
                return
            if error := answer.get("error"):
                raise DscintError(error)
            # A run that has just ended may hold the port for a moment.
            foreign_since = foreign_since or time.monotonic()
            if time.monotonic() - foreign_since > FOREIGN_S:
                raise DscintError(
                    f"what answers {own.who} at {launch.coordinator} is not process 0 of this "
                    f"run; it may be another run on that port, or one of fewer processes that "
                    f"started without this one"
                )
            reason = "what listens there does not answer as process 0 does"
        time.sleep(PATIENCE_S)
    raise DscintError(
        f"{own.who} did not reach process 0 at {launch.coordinator} within {timeout_s:g} s: "
        f"{reason}{_loopback_hint(launch)}"
    )


def _loopback_hint(launch: Launch) -> str:
    addresses = addresses_of(launch.host)
    if not are_loopback(addresses):
        return ""
    return (
        f"; {launch.host} is {launch.node} itself here ({addresses[0]}): if process 0 runs on "
        f"another machine, give that one's address, or mend /etc/hosts"
    )


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection on which it sends nothing more."""
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        connection.settimeout(GREETING_S)
        return False
    except OSError:
        return True


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _read_line(connection: socket.socket) -> dict[str, Any]:
    """The JSON object that the other side sends; empty if it sends something else.

    Raises:
      OSError: the connection broke or was closed, or nothing came in time.
    """
    text = b""
    while not text.endswith(b"\n") and len(text) < LONGEST_LINE:
        part = connection.recv(4096)
        if not part:
            break
        text += part
    if not text:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed")
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def numbers(indices: list[int]) -> str:
    """'processes 1, 2, 5'; of many the first ones."""
    shown = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
    return f"process{'es' if len(indices) > 1 else ''} {shown}"
