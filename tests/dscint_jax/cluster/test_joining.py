import os
import signal
import socket
import time

import pytest

from dscint_jax.cluster import ALONE, Cluster
from dscint_jax.cluster.joining import _check_port, _local_gpus, _why_apart, find_cluster
from tests.dscint_jax.cluster.conftest import ends, free_port
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


@pytest.mark.slow
def test_machine_that_takes_the_coordinator_for_itself_is_named(machines):
    processes = machines("print('reached')", 6, node2={"node1": "127.0.1.1"})
    assert ends(processes) == [2, 2]
    assert "on node2 the name node1 resolves to 127.0.1.1" in processes[1].err
    assert "within 6 s: " in processes[0].err


def test_missing_processes_are_named_in_time_in_one_line(run):
    began = time.monotonic()
    processes = run("print('reached')", counts=(4, 4), timeout=6)
    assert ends(processes) == [2, 2]
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
    cluster = Cluster(index, 2, "flags", f"{host}:{free_port()}", "vm")
    assert message in _why_apart(cluster, 1, None)


def test_port_in_use_is_refused_though_the_other_would_share_it_as_jax_does():
    with socket.create_server(("", 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of the coordinator localhost .*in use"):
            _check_port(Cluster(0, 2, "flags", f"localhost:{port}", "vm"))


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
