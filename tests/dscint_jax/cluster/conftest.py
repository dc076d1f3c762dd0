"""Processes of one run, on this machine or on two."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Every process of these tests runs this, with `body` as the inside of main(cluster).
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
import jax
import jax.numpy as jnp
from dscint_jax.cluster import *
from tfds_builder.commandline.errors import UserError


def main(cluster):
    index = cluster.process_index
{body}


count, index, port = map(int, sys.argv[1:4])
run_together(
    main,
    coordinator_address=f"localhost:{{port}}",
    num_processes=count,
    process_id=index,
    initialization_timeout_s=float(sys.argv[4]),
    workdir=Path(sys.argv[5]),
)
"""


def _hears_interrupts():
    # Tests in the background of a script ignore SIGINT, and so would what they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """A process of a run; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, folder, program, *arguments, python=(sys.executable,), **environment):
        self.folder = folder
        self._files = [folder / f"{name}{arguments[1]}.txt" for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.popen = subprocess.Popen(
                [*python, "-u", "-c", program, *map(str, arguments)],
                env={
                    **os.environ,
                    "JAX_NUM_CPU_DEVICES": "2",
                    **environment,
                },
                stdout=out,
                stderr=err,
                preexec_fn=_hears_interrupts,
            )

    @property
    def out(self):
        return self._files[0].read_text()

    @property
    def err(self):
        return self._files[1].read_text()

    def wait(self, timeout=60):
        try:
            return self.popen.wait(timeout)
        finally:
            self.popen.kill()

    def wait_for(self, text):
        deadline = time.monotonic() + 60
        while text not in self.out and self.popen.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.out, self.out + self.err


@pytest.fixture
def run(tmp_path):
    """Starts processes of one run; returns them."""
    started = []

    def start(body, counts=(2, 2), timeout=30, first=0, **environment):
        port = free_port()
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, count in enumerate(counts, first):
            arguments = (count, index, port, timeout, tmp_path / "work")
            started.append(Process(tmp_path, program, *arguments, **environment))
        return started

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


def ends(processes, timeout=60):
    return [process.wait(timeout) for process in processes]


SUM_AND_AGREE = """\
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((jax.device_count(),), ("data",))
local = jnp.arange(2.0) + 10 * index
sharding = NamedSharding(mesh, PartitionSpec("data"))
everywhere = jax.make_array_from_process_local_data(sharding, local)
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(everywhere)
for _ in range(3):
    texts = gather(cluster, "texts", f"from {index}")
preflight(cluster, {"config.seed": "7", "the data set's fingerprint": "ab"})
print(cluster.kind, cluster.is_first, jax.device_count(), float(total), texts)
"""


NODES = {"node1": "10.213.77.1", "node2": "10.213.77.2"}
NAMESPACES = {node: f"dscint-{node}" for node in NODES}
ON_ITS_OWN_MACHINE = 'hostname "$1"; shift; exec "$@"'


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def machines(tmp_path):
    """Runs a program as two processes on two machines: network namespaces joined by a cable.

    Each machine's /etc/hosts gives the other's address and, unless told otherwise, its own.
    """
    hosts = {node: Path("/etc/netns") / name / "hosts" for node, name in NAMESPACES.items()}
    started = []
    try:
        for name in NAMESPACES.values():
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        first, second = NAMESPACES.values()
        _ip(
            *("-n", first, "link", "add", "cable", "type", "veth"),
            *("peer", "cable", "netns", second),
        )
        for node, name in NAMESPACES.items():
            _ip("-n", name, "address", "add", f"{NODES[node]}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            hosts[node].parent.mkdir(parents=True, exist_ok=True)
    except (OSError, subprocess.SubprocessError):
        _remove_machines(hosts)
        pytest.skip("network namespaces need Linux, iproute2 and root")

    def run(body, timeout=15, **names):
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, node in enumerate(NODES):
            known = {**NODES, **names.get(node, {})}
            lines = [f"{address} {name}" for name, address in known.items()]
            hosts[node].write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            place = ["ip", "netns", "exec", NAMESPACES[node], "unshare", "--uts"]
            command = [*place, "bash", "-c", ON_ITS_OWN_MACHINE, "bash", node, sys.executable]
            started.append(
                Process(
                    *(
                        tmp_path,
                        program.replace("localhost", "node1"),
                        2,
                        index,
                        12345,
                        timeout,
                        tmp_path / "work",
                    ),
                    python=command,
                )
            )
        return started

    yield run
    for process in started:
        process.popen.kill()
        process.popen.wait()
    _remove_machines(hosts)


def _remove_machines(hosts):
    for name in NAMESPACES.values():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=10)
    for path in hosts.values():
        shutil.rmtree(path.parent, ignore_errors=True)
