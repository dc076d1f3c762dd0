import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dscint_jax.cluster import (
    ALONE,
    AgreedStop,
    Cluster,
    barrier,
    config_facts,
    find_cluster,
    gather,
    leave,
    preflight,
)
from dscint_jax.cluster.cluster import loopback_of, visible_gpus
from dscint_jax.cluster.joining import _check_port, _local_gpus, _why_apart
from tests.dscint_jax.conftest import load_tiny_config
from tfds_builder.commandline.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
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


class _Process:
    """A process of a run; what it prints goes to files, so that it never waits for a reader."""

    def __init__(self, folder, program, *arguments, python=(sys.executable,), **environment):
        self.folder = folder
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
        port = _free_port()
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, count in enumerate(counts, first):
            arguments = (count, index, port, timeout, tmp_path / "work")
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
preflight(cluster, {"config.seed": "7", "the data set's fingerprint": "ab"})
print(cluster.kind, cluster.is_first, jax.device_count(), float(total), texts)
"""


def test_two_processes_meet_sum_agree_and_end_without_a_word_on_stderr(run):
    # A web proxy in the environment, as on many clusters, must not stand between them.
    processes = run(
        SUM_AND_AGREE, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"
    )
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    for process, first in zip(processes, (True, False), strict=True):
        assert process.err == ""
        assert f"flags {first} 4 22.0 ['from 0', 'from 1']\n" in process.out


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
            *(tmp_path, program, 2, index, port, 30, tmp_path),
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
    processes = run(f"if index == {failing}:\n    raise UserError('bad field')\ntime.sleep(50)")
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

    def run(body, timeout=15, **names):
        program = PROGRAM.format(body="\n".join("    " + line for line in body.splitlines()))
        for index, node in enumerate(NODES):
            known = {**NODES, **names.get(node, {})}
            lines = [f"{address} {name}" for name, address in known.items()]
            hosts[node].write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            place = ["ip", "netns", "exec", NAMESPACES[node], "unshare", "--uts"]
            command = [*place, "bash", "-c", ON_ITS_OWN_MACHINE, "bash", node, sys.executable]
            started.append(
                _Process(
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
    processes = machines("print('reached')", 6, node2={"node1": "127.0.1.1"})
    assert _ends(processes) == [2, 2]
    assert "on node2 the name node1 resolves to 127.0.1.1" in processes[1].err
    assert "within 6 s: " in processes[0].err


LOOP = """\
draw = random.Random(f"{seed} {{index}}")
wishes = []
signal.signal(signal.{name}, lambda *_: wishes.append("{name}"))
with AgreedStop(cluster) as stop:
    for step in range(101, 1000):
        time.sleep(draw.uniform(0, 0.02 + 0.03 * index))
        if step == {told_at} and index in {told}:
            os.kill(os.getpid(), signal.{name})
        if stop.should_stop_after(step, *wishes[:1]):
            break
print("stopped after", step, stop.reason)
"""


@pytest.mark.parametrize(
    ("told", "name"), [((0,), "SIGTERM"), ((1,), "SIGUSR1"), ((0, 1), "SIGTERM")]
)
def test_all_stop_after_the_same_step_whoever_is_told_and_know_why(run, told, name):
    seed = random.SystemRandom().randrange(2**32)
    print(f"paces drawn from seed {seed}")
    # Nothing else keeps the loops together: one runs ahead of the other.
    processes = run(LOOP.format(seed=seed, told=told, told_at=130, name=name))
    assert _ends(processes) == [0, 0], processes[0].err + processes[1].err
    lines = [process.out.splitlines()[-1] for process in processes]
    assert lines[0] == lines[1]
    assert lines[0].startswith("stopped after ")
    assert lines[0].endswith(f" {name}")
    assert 130 < int(lines[0].split()[2]) < 400


def test_lone_process_agrees_with_itself_and_stops_at_once():
    assert gather(ALONE, "name", "text") == ["text"]
    barrier(ALONE, "name", 0)
    preflight(ALONE, {"config.seed": "1"})
    leave(ALONE)
    assert ALONE.is_first
    with AgreedStop() as stop:
        assert not stop.should_stop_after(1)
        assert stop.should_stop_after(2, "SIGTERM")
        assert stop.reason == "SIGTERM"


def test_config_facts_name_every_field():
    facts = config_facts(load_tiny_config())
    assert facts["config.batch_size"] == "8"
    assert facts["config.data.pool"] == "16"
    assert not [name for name, value in facts.items() if value.startswith("{")]


def test_processes_that_count_differently_are_refused(run):
    processes = run("print('reached')", counts=(2, 3))
    assert _ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: the number of processes is 2 in process 0 on ")
        assert " and 3 in process 1 on " in process.err
        assert "reached" not in process.out


def test_missing_processes_are_named_in_time_in_one_line(run):
    began = time.monotonic()
    processes = run("print('reached')", counts=(4, 4), timeout=6)
    assert _ends(processes) == [2, 2]
    assert time.monotonic() - began < 30
    for process in processes:
        assert process.err.startswith("error: process ")
        assert "within 6 s: missing: processes 2, 3; see their logs" in process.err
        assert process.err.count("\n") == 1


def test_coordinator_that_is_not_there_is_one_line(run):
    (process,) = run("print('reached')", counts=(2,), timeout=1, first=1)
    assert process.wait() == 2
    assert "nobody listens there; on " in process.err
    assert " the name localhost resolves to " in process.err
    assert process.err.count("\n") == 1


def test_interrupt_ends_the_wait_for_the_others_at_once(run):
    (process,) = run("print('reached')", counts=(2,), timeout=50)
    while not (process.folder / "work" / "started").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.popen.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


@pytest.mark.parametrize(
    ("index", "host", "message"),
    [
        (1, "no-such-host.invalid", "name no-such-host.invalid does not resolve on vm"),
        (0, "192.0.2.7", "vm is not the coordinator 192.0.2.7"),
    ],
)
def test_coordinator_that_cannot_be_reached_is_told(monkeypatch, index, host, message):
    monkeypatch.setattr("dscint_jax.cluster.joining.CONNECT_S", 0.5)
    cluster = Cluster(index, 2, "flags", f"{host}:{_free_port()}", "vm")
    assert message in _why_apart(cluster, 1, None)


def test_port_in_use_is_refused_though_the_other_would_share_it_as_jax_does():
    with socket.create_server(("", 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of the coordinator localhost .*in use"):
            _check_port(Cluster(0, 2, "flags", f"localhost:{port}", "vm"))


def test_loopback_addresses_are_known(monkeypatch):
    assert loopback_of("localhost") in ("127.0.0.1", "::1")
    assert loopback_of("no-such-host.invalid") == ""
    for addresses, expected in (
        (["127.0.1.1", "::1"], "127.0.1.1"),
        (["127.0.1.1", "10.0.0.1"], ""),
        (["fe80::1%eth0"], ""),
    ):
        found = [(None, None, None, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        assert loopback_of("node1") == expected


@pytest.fixture
def started_with(monkeypatch):
    """Sets the environment in which a process was started, and finds its place."""

    def find(environment, *flags, distributed="auto"):
        for name in list(os.environ):
            if name.startswith(
                ("SLURM", "OMPI", "JAX_COORD", "JAX_NUM", "JAX_PROC", "JOB_", "TPU_")
            ):
                monkeypatch.delenv(name)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return find_cluster(*(flags or (None, None, None)), distributed)

    return find


HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (SLURM, Cluster(3, 4, "SLURM", f"gpu07:{61440 + 4711 % 4096}", "gpu08")),
        ({**SLURM, "JAX_COORDINATOR_PORT": "999"}, Cluster(3, 4, "SLURM", "gpu07:999", "gpu08")),
        (
            {**SLURM, "JAX_COORDINATOR_ADDRESS": "other:5"},
            Cluster(3, 4, "SLURM", "other:5", "gpu08"),
        ),
        # A batch script, and a shell of one task inside an allocation of several.
        ({k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_NTASKS": "4"}, ALONE),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, ALONE),
        (OPEN_MPI, Cluster(2, 4, "Open MPI", f"10.96.0.1:{61440 + 373920 % 4096}", HERE)),
        # mpirun in an allocation of SLURM: what SLURM started is mpirun's daemons.
        ({**SLURM, **OPEN_MPI}, Cluster(2, 4, "Open MPI", "10.96.0.1:62624", "gpu08")),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, ALONE),
        (VARIABLES, Cluster(1, 2, "environment", "a:1", HERE)),
        (
            {**VARIABLES, "JOB_COMPLETION_INDEX": "0"},
            Cluster(1, 2, "environment", "a:1", HERE),
        ),
        (
            {
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
                "JOB_COMPLETION_INDEX": "1",
                "JAX_COORDINATOR_ADDRESS": "dscint-train-0-0.dscint:12345",
                "JAX_NUM_PROCESSES": "2",
            },
            Cluster(1, 2, "environment", "dscint-train-0-0.dscint:12345", HERE),
        ),
        # An indexed Job whose pods know nothing of each other: each runs alone.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, ALONE),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Cluster(0, 0, "TPU", "", HERE)),
        ({"TPU_WORKER_HOSTNAMES": "a"}, ALONE),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, ALONE),
    ],
)
def test_place_is_read_from_the_environment(started_with, environment, expected):
    assert started_with(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({**SLURM, "SLURM_PROCID": "x"}, "SLURM_PROCID=x in the environment is not a number"),
        ({**SLURM, "SLURM_PROCID": "4"}, "this is process 4 of 4; they are numbered from 0 to 3"),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "n"}, "the coordinator 'n' is not HOST:PORT"),
        ({**VARIABLES, "JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID= in the environment is not a number"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set, and nothing says where process 0"),
        (
            {k: v for k, v in OPEN_MPI.items() if "uri" not in k},
            "-x JAX_COORDINATOR_ADDRESS=HOST:PORT",
        ),
    ],
)
def test_environment_that_contradicts_itself_is_named(started_with, environment, message):
    with pytest.raises(UserError, match=message):
        started_with(environment)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", None, None), "missing: --num_processes and --process_id;"),
        (("a:1", 2, None), "missing: --process_id;"),
        (("a", 2, 1), "the coordinator 'a' is not HOST:PORT"),
        (("a:0", 2, 1), "the coordinator 'a:0' is not HOST:PORT"),
        (("a:1", 2, 2), "this is process 2 of 2; they are numbered from 0 to 1"),
        (("a:1", 0, 0), "this is process 0 of 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_named(started_with, flags, message):
    with pytest.raises(UserError, match=message):
        started_with({}, *flags)


def test_flags_go_before_the_environment_and_off_runs_alone(started_with):
    assert started_with(SLURM, "a:1", 2, 0) == Cluster(0, 2, "flags", "a:1", "gpu08")
    assert started_with({}, "a:1", 1, 0) is ALONE
    assert started_with(SLURM, distributed="off") is ALONE
    with pytest.raises(UserError, match="--distributed=off"):
        started_with({}, "a:1", 2, 0, distributed="off")


@pytest.mark.parametrize(
    ("visible", "local_index", "local_count", "expected"),
    [
        ("0,1,2,3", 0, 1, None),
        ("0,1,2,3", 3, 4, [3]),
        ("0,1,2,3", 1, 2, [2, 3]),
        # Each was given its own, or there is none.
        ("2", 1, 4, None),
        ("", 1, 4, None),
    ],
)
@pytest.mark.parametrize("kind", ["SLURM", "Open MPI"])
def test_processes_share_the_gpus_of_their_machine(
    monkeypatch, kind, visible, local_index, local_count, expected
):
    variables = {
        "CUDA_VISIBLE_DEVICES": visible,
        "SLURM_LOCALID": local_index,
        "SLURM_STEP_NUM_NODES": 8 // local_count,
        "OMPI_COMM_WORLD_LOCAL_RANK": local_index,
        "OMPI_COMM_WORLD_LOCAL_SIZE": local_count,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    assert _local_gpus(Cluster(0, 8, kind, "a:1", "gpu07")) == expected


def test_gpus_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    with pytest.raises(UserError, match="3 processes on gpu07 cannot share its 4 GPUs evenly"):
        _local_gpus(Cluster(0, 3, "SLURM", "a:1", "gpu07"))


def test_visible_gpus_are_counted_without_cuda(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == 2
    for listed, count in (("1", 1), ("GPU-a,MIG-b", 2), ("", 0), ("0,-1,1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert visible_gpus(tmp_path) == count


def test_nothing_that_is_imported_before_the_start_touches_a_device():
    program = (
        "import dscint_jax.main, dscint_jax.cluster, dscint_jax.training.train\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
