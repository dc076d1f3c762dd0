import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dscint_jax.cluster import (
    ALONE,
    AgreedStop,
    agree,
    barrier,
    broadcast,
    config_facts,
    find_launch,
    gather,
    leave,
    preflight,
)
from dscint_jax.cluster.launch import (
    Launch,
    first_node,
    launch_of_environment,
    local_devices,
    tasks_per_node,
    visible_gpus,
)
from dscint_jax.cluster.rendezvous import are_loopback, check_loopback, meet
from dscint_jax.errors import DscintError

from .conftest import load_tiny_config

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURMD_NODENAME": "gpu08",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# Every process of these tests runs this, with `body` as the inside of main(cluster).
PROGRAM = """
import os, random, signal, sys, time
import jax
import jax.numpy as jnp
from dscint_jax.cluster import *
from dscint_jax.errors import DscintError


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
)
"""


class _Process:
    """A process of a run; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, folder, program, *arguments, python=(sys.executable,), **environment):
        self._files = [folder / f"{name}{arguments[1]}.txt" for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.popen = subprocess.Popen(
                [*python, "-u", "-c", program, *map(str, arguments)],
                env={
                    **os.environ,
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                    **environment,
                },
                stdout=out,
                stderr=err,
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

    def start(body, counts=(2, 2), timeout=30, **environment):
        port = _free_port()
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, count in enumerate(counts):
            arguments = (count, index, port, timeout)
            started.append(_Process(tmp_path, program, *arguments, **environment))
        return started

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


def _ends(processes, timeout=60):
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
    agree(cluster, "seed", "7")
preflight(cluster, {"config.seed": "7", "the data set's fingerprint": "ab"})
print(cluster.kind, cluster.is_first, jax.device_count(), float(total), texts)
print(broadcast(cluster, "run", f"name by {index}"))
"""


def test_two_processes_meet_sum_agree_and_end_without_a_word_on_stderr(run):
    # A web proxy in the environment, as on many clusters, must not stand between them.
    processes = run(
        SUM_AND_AGREE, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"
    )
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    for process, first in zip(processes, (True, False), strict=True):
        assert process.err == ""
        assert f"flags {first} 4 22.0 ['from 0', 'from 1']\nname by 0\n" in process.out


def test_unequal_config_is_named_by_every_process(run):
    processes = run('preflight(cluster, {"config.seed": "1", "config.batch_size": f"{8 + index}"})')
    assert _ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: config.batch_size is 8 in process 0 on ")
        assert " and 9 in process 1 on " in process.err
        assert process.err.count("\n") == 1


def test_unequal_numbers_of_devices_are_refused(run, tmp_path):
    port, program = _free_port(), PROGRAM.format(body="    print('reached')")
    processes = [
        _Process(
            *(tmp_path, program, 2, index, port, 30),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={2 + index}",
        )
        for index in range(2)
    ]
    assert _ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: the number of devices is 2 in process 0")
        assert "reached" not in process.out


def test_barrier_ends_in_time_and_names_who_is_missing_and_all_end(run):
    processes = run(
        "if index == 0:\n    barrier(cluster, 'the first step', 1)\nelse:\n    time.sleep(50)"
    )
    assert _ends(processes, 45) == [2, 1]
    assert "did not all reach 'the first step' within 1 s; missing: process 1" in processes[0].err
    assert "process 1 on " in processes[1].err
    assert "ends because of process 0 on " in processes[1].err
    for process in processes:
        assert process.err.count("\n") == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_error_in_one_process_ends_the_other_with_its_reason(run, failing):
    processes = run(f"if index == {failing}:\n    raise DscintError('bad field')\ntime.sleep(50)")
    assert processes[failing].wait(40) == 2
    assert processes[1 - failing].wait(20) == 1
    assert processes[failing].err == "error: bad field\n"
    other = processes[1 - failing].err
    assert f"ends because of process {failing} on " in other
    assert other.endswith(": bad field\n")
    assert other.count("\n") == 1


def test_sigterm_before_the_training_ends_a_process_at_once(run):
    processes = run("print('started')\ntime.sleep(50)")
    processes[1].wait_for("started")
    processes[1].popen.send_signal(signal.SIGTERM)
    assert processes[1].wait(20) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_killed_process_ends_the_other_in_half_a_minute(run, killed):
    processes = run("print('started')\ntime.sleep(100)")
    for process in processes:
        process.wait_for("started")
    processes[killed].popen.kill()
    assert processes[1 - killed].wait(30) != 0


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

    def run(body, **names):
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, node in enumerate(NODES):
            known = {**NODES, **names.get(node, {})}
            lines = [f"{address} {name}" for name, address in known.items()]
            hosts[node].write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            place = ["ip", "netns", "exec", NAMESPACES[node], "unshare", "--uts"]
            command = [*place, "bash", "-c", ON_ITS_OWN_MACHINE, "bash", node, sys.executable]
            started.append(
                _Process(
                    *(tmp_path, program.replace("localhost", "node1"), 2, index, 12345, 15),
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


@pytest.mark.slow
def test_two_machines_sum_and_agree(machines):
    processes = machines(SUM_AND_AGREE)
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    for process in processes:
        assert process.err == ""
        assert " 4 22.0 ['from 0', 'from 1']\n" in process.out


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES)
def test_machine_whose_own_name_is_loopback_is_named(machines, node):
    processes = machines("print('reached')", **{node: {node: "127.0.1.1"}})
    assert _ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith(f"error: on {node} its own name resolves to 127.0.1.1")
        assert "reached" not in process.out


@pytest.mark.slow
def test_machine_that_takes_the_coordinator_for_itself_is_named(machines):
    processes = machines("print('reached')", node2={"node1": "127.0.1.1"})
    began = time.monotonic()
    assert processes[1].wait() == 2
    assert time.monotonic() - began < 12
    expected = "error: on node2 the coordinator's name node1 resolves to 127.0.1.1"
    assert processes[1].err.startswith(expected)
    assert processes[0].wait() == 2
    assert "1 of 2 processes arrived within 15 s at node1:12345" in processes[0].err


LOOP = """\
draw = random.Random(f"{seed} {{index}}")
with AgreedStop(cluster, start_step=100) as stop:
    signal.signal(signal.SIGTERM, lambda *_: stop.request("SIGTERM"))
    for step in range(101, 1000):
        time.sleep(draw.uniform(0, 0.02 + 0.03 * index))
        if step == {told_at} and index in {told}:
            os.kill(os.getpid(), signal.SIGTERM)
        if stop.should_stop_after(step):
            break
print("stopped after", step, stop.reason)
"""


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
def test_all_stop_after_the_same_step_whoever_is_told(run, told):
    seed = random.SystemRandom().randrange(2**32)
    print(f"paces drawn from seed {seed}")
    # Nothing else keeps the loops together: one runs ahead of the other.
    processes = run(LOOP.format(seed=seed, told=told, told_at=130))
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    lines = [process.out.splitlines()[-1] for process in processes]
    assert lines[0] == lines[1]
    assert lines[0].startswith("stopped after ")
    assert lines[0].endswith(" SIGTERM")
    assert 130 < int(lines[0].split()[2]) < 400


def test_process_that_has_finished_does_not_hold_up_a_stop(run):
    processes = run(
        """\
steps = 5 if index else 60
with AgreedStop(cluster) as stop:
    for step in range(1, steps + 1):
        time.sleep(0.05)
        if step == 30:
            stop.request()
        if stop.should_stop_after(step):
            break
print("left after", step)
"""
    )
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    assert "left after 5\n" in processes[1].out
    # The other is past step 6 already, so it stops at its next.
    assert 30 <= int(processes[0].out.split()[-1]) < 40


def test_lone_process_agrees_with_itself_and_stops_at_once():
    assert gather(ALONE, "name", "text") == ["text"]
    assert broadcast(ALONE, "name", "text") == "text"
    agree(ALONE, "name", "text")
    barrier(ALONE, "name", 0)
    preflight(ALONE, {"config.seed": "1"})
    leave(ALONE)
    assert ALONE.is_first
    with AgreedStop() as stop:
        assert not stop.should_stop_after(1)
        stop.request("SIGTERM")
        assert stop.should_stop_after(2)
        assert stop.reason == "SIGTERM"


def test_config_facts_name_every_field():
    facts = config_facts(load_tiny_config())
    assert facts["config.batch_size"] == "8"
    assert facts["config.data.pool"] == "16"
    assert not [name for name, value in facts.items() if value.startswith("{")]


def _meet(launches, timeout=10.0):
    """Lets processes meet, each in a thread; their errors, or None where there is none."""
    results = [None] * len(launches)

    def one(n):
        try:
            meet(launches[n], timeout)
        except DscintError as error:
            results[n] = str(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(launches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _launch(index, count, port, node="vm", host="localhost"):
    return Launch("flags", f"{host}:{port}", index, count, node=node)


def test_processes_meet_and_strangers_do_not_disturb():
    port = _free_port()
    strangers = []

    def knock():
        deadline = time.monotonic() + 5
        while len(strangers) < 2 and time.monotonic() < deadline:
            try:
                strangers.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                strangers[-1].sendall(b"GET / HTTP/1.1\r\n\r\n" if len(strangers) == 1 else b"{}\n")
            except OSError:
                time.sleep(0.01)

    knocking = threading.Thread(target=knock)
    knocking.start()
    # The last one comes late, so that the strangers are there first.
    late = threading.Timer(1.0, lambda: meet(_launch(2, 3, port), 10))
    late.start()
    assert _meet([_launch(index, 3, port) for index in (0, 1)]) == [None, None]
    knocking.join()
    late.join()
    for stranger in strangers:
        stranger.close()


def test_processes_that_count_differently_are_refused():
    port = _free_port()
    first, second = _meet([_launch(0, 2, port), _launch(1, 3, port)])
    assert first == second
    assert "was told that there are 2 processes" in first
    assert "there are 3" in first


def test_two_processes_with_one_number_are_refused():
    port = _free_port()
    errors = _meet([_launch(0, 3, port, "a"), _launch(1, 3, port, "b"), _launch(1, 3, port, "c")])
    assert len(set(errors)) == 1
    assert "two processes call themselves process 1" in errors[0]


def test_missing_process_is_named_in_time():
    port = _free_port()
    began = time.monotonic()
    errors = _meet([_launch(0, 4, port), _launch(2, 4, port)], timeout=1)
    assert time.monotonic() - began < 5
    assert errors[0] == errors[1]
    assert f"2 of 4 processes arrived within 1 s at localhost:{port}" in errors[0]
    assert "missing: processes 1, 3;" in errors[0]


@pytest.mark.parametrize(
    ("index", "host", "message"),
    [
        (1, "localhost", "nobody listens there; localhost is vm itself here"),
        (1, "no-such-host.invalid", "name no-such-host.invalid does not resolve on vm"),
        (0, "no-such-host.invalid", "name no-such-host.invalid does not resolve on vm"),
        (0, "192.0.2.7", "process 0 runs on vm, which is not the coordinator 192.0.2.7"),
    ],
)
def test_coordinator_that_is_not_there_is_one_line_in_seconds(monkeypatch, index, host, message):
    monkeypatch.setattr("dscint_jax.cluster.rendezvous.RESOLVE_S", 0.5)
    began = time.monotonic()
    with pytest.raises(DscintError) as caught:
        meet(_launch(index, 2, _free_port(), host=host), 1)
    # Resolving a name that does not exist takes what the resolver takes.
    assert time.monotonic() - began < 15
    assert message in str(caught.value)


def test_port_in_use_is_refused():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            DscintError, match=f"port {port} of the coordinator localhost is in use"
        ):
            meet(_launch(0, 2, port), 1)


def test_something_else_behind_the_port_is_told_from_process_0(monkeypatch):
    monkeypatch.setattr("dscint_jax.cluster.rendezvous.FOREIGN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def answer():
            server.settimeout(0.1)
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\x00\x00\x12\x04\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(DscintError, match="is not process 0 of this run"):
                meet(_launch(1, 2, server.getsockname()[1]), 10)
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    ("host", "node", "coordinator", "own", "refused"),
    [
        # Debian's line for the own name, copied from node1 to node2 with the whole disk.
        ("node1", "node2", ["127.0.1.1"], ["10.0.0.2"], True),
        ("node1", "node2", ["127.0.1.1"], [], True),
        ("node1", "node2", ["127.0.0.1", "::1"], ["10.0.0.2"], True),
        ("node1", "node2", ["10.0.0.1"], ["127.0.1.1"], False),
        ("node1", "node2", ["10.0.0.1"], ["10.0.0.2"], False),
        # Several nodes that are one machine, as in tests of SLURM.
        ("node1", "node2", ["127.0.0.1"], ["127.0.0.1"], False),
        # Second processes of the coordinator's own machine.
        ("node1", "node1", ["127.0.1.1"], ["127.0.1.1"], False),
        ("localhost", "node1", ["127.0.0.1"], ["10.0.0.1"], False),
        ("127.0.0.1", "node1", ["127.0.0.1"], ["10.0.0.1"], False),
    ],
)
def test_another_machine_s_name_that_leads_to_this_one_is_refused(
    host, node, coordinator, own, refused
):
    launch = Launch("SLURM", f"{host}:12345", 1, 2, node=node)
    if refused:
        with pytest.raises(
            DscintError, match=r"on node2 the coordinator's name node1 .*/etc/hosts"
        ):
            check_loopback(launch, coordinator, own)
    else:
        check_loopback(launch, coordinator, own)


def test_loopback_addresses_are_known():
    assert are_loopback(["127.0.1.1", "::1"])
    assert not are_loopback(["127.0.1.1", "10.0.0.1"])
    assert not are_loopback(["fe80::1%eth0"])
    assert not are_loopback([])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, Launch("SLURM", f"gpu07:{61440 + 4711 % 4096}", 3, 4, 1, 2, "gpu08")),
        # Two steps of one job may share a node.
        (
            {**SLURM, "SLURM_STEP_ID": "2"},
            Launch("SLURM", f"gpu07:{61440 + (4711 + 2 * 97) % 4096}", 3, 4, 1, 2, "gpu08"),
        ),
        (
            {**SLURM, "JAX_COORDINATOR_PORT": "999"},
            Launch("SLURM", "gpu07:999", 3, 4, 1, 2, "gpu08"),
        ),
        (
            {**SLURM, "JAX_COORDINATOR_ADDRESS": "other:5"},
            Launch("SLURM", "other:5", 3, 4, 1, 2, "gpu08"),
        ),
        # A batch script, and a shell of one task inside an allocation of several.
        ({k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_NTASKS": "4"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        (OPEN_MPI, Launch("Open MPI", f"10.96.0.1:{61440 + 373920 % 4096}", 2, 4, 0, 2)),
        (
            {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::b9b,2620::2]:43"},
            Launch("Open MPI", "[fe80::b9b]:61441", 2, 4, 0, 2),
        ),
        # mpirun in an allocation of SLURM: what SLURM started is mpirun's daemons.
        ({**SLURM, **OPEN_MPI}, Launch("Open MPI", "10.96.0.1:62624", 2, 4, 0, 2)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (VARIABLES, Launch("environment", "a:1", 1, 2)),
        (
            {
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
                "JOB_COMPLETION_INDEX": "1",
                "JAX_COORDINATOR_ADDRESS": "dscint-train-0-0.dscint:12345",
                "JAX_NUM_PROCESSES": "2",
            },
            Launch("environment", "dscint-train-0-0.dscint:12345", 1, 2),
        ),
        # An indexed Job whose pods know nothing of each other: each runs alone.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Launch("TPU", "", 0, 2)),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_launch_is_read_from_the_environment(environment, expected):
    assert launch_of_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**SLURM, "SLURM_PROCID": "x"}, "SLURM_PROCID=x in the environment is not a number"),
        ({**SLURM, "SLURM_PROCID": "4"}, "SLURM_PROCID is 4; with SLURM_STEP_NUM_TASKS 4"),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "n"}, "JAX_COORDINATOR_ADDRESS 'n' is not HOST:PORT"),
        ({**VARIABLES, "JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES is set and JAX_PROCESS_ID is not"),
        (
            {k: v for k, v in OPEN_MPI.items() if "uri" not in k},
            "-x JAX_COORDINATOR_ADDRESS=HOST:PORT",
        ),
    ],
)
def test_environment_that_contradicts_itself_is_named(environment, message):
    with pytest.raises(DscintError, match=message):
        launch_of_environment(environment)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, None), "--num_processes and --process_id are missing"),
        (("a:1", 2, None), "--process_id is missing"),
        (("a", 2, 1), "--coordinator_address 'a' is not HOST:PORT"),
        (("a:0", 2, 1), "--coordinator_address 'a:0' is not HOST:PORT"),
        (("a:1", 2, 2), "--process_id is 2; with --num_processes 2 it is one of 0 to 1"),
        (("a:1", 0, 0), "--num_processes is 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_named(flags, message):
    with pytest.raises(DscintError, match=message):
        find_launch(*flags, "auto", {})


def test_flags_go_before_the_environment_and_off_runs_alone():
    assert find_launch("a:1", 2, 0, "auto", SLURM) == Launch("flags", "a:1", 0, 2)
    assert find_launch("a:1", 1, 0, "auto", {}) is None
    assert find_launch(None, None, None, "off", SLURM) is None
    with pytest.raises(DscintError, match="--distributed=off"):
        find_launch("a:1", 2, 0, "off", {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[003,007-015]", "node003"),
        ("rack[02-07,11]-gpu,login", "rack02-gpu"),
        ("r[1-2]n[05-08]", "r1n05"),
    ],
)
def test_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("4") == [4]


def _on_gpus(visible, local_index=0, local_count=1):
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    return local_devices(
        Launch("SLURM", "a:1", 0, 8, local_index, local_count, "gpu07"), environment
    )


def test_processes_share_the_gpus_of_their_machine():
    assert _on_gpus("0,1,2,3") is None
    assert [_on_gpus("0,1,2,3", n, 4) for n in range(4)] == [[0], [1], [2], [3]]
    assert [_on_gpus("0,1,2,3", n, 2) for n in range(2)] == [[0, 1], [2, 3]]
    # Each was given its own, or there is none.
    assert _on_gpus("2", 1, 4) is None
    assert _on_gpus("", 1, 4) is None
    with pytest.raises(DscintError, match="3 processes on gpu07 cannot share its 4 GPUs evenly"):
        _on_gpus("0,1,2,3", 1, 3)


def test_visible_gpus_are_counted_without_cuda(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a,MIG-b"}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, tmp_path) == 1


def test_nothing_that_is_imported_before_the_start_touches_a_device():
    program = (
        "import dscint_jax.main, dscint_jax.cluster, dscint_jax.train\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
