import signal
import socket
import subprocess
import sys

import pytest

from dscint_jax.cluster import ALONE, barrier, config_facts, gather, leave, preflight
from dscint_jax.cluster.cluster import loopback_of, visible_gpus
from tests.dscint_jax.cluster.conftest import (
    NODES,
    PROGRAM,
    SUM_AND_AGREE,
    Process,
    ends,
    free_port,
)
from tests.dscint_jax.conftest import load_tiny_config


def test_two_processes_meet_sum_agree_and_end_without_a_word_on_stderr(run):
    # A web proxy in the environment, as on many clusters, must not stand between them.
    processes = run(
        SUM_AND_AGREE, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"
    )
    assert ends(processes) == [0, 0], processes[0].err + processes[1].err
    for process, first in zip(processes, (True, False), strict=True):
        assert process.err == ""
        assert f"flags {first} 4 22.0 ['from 0', 'from 1']\n" in process.out


def test_unequal_config_is_named_by_every_process(run):
    processes = run('preflight(cluster, {"config.seed": "1", "config.batch_size": f"{8 + index}"})')
    assert ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: config.batch_size is 8 in process 0 on ")
        assert " and 9 in process 1 on " in process.err
        assert process.err.count("\n") == 1


def test_unequal_numbers_of_devices_are_refused(run, tmp_path):
    port, program = free_port(), PROGRAM.format(body="    print('reached')")
    processes = [
        Process(
            *(tmp_path, program, 2, index, port, 30, tmp_path),
            JAX_NUM_CPU_DEVICES=str(2 + index),
        )
        for index in range(2)
    ]
    assert ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: the number of devices is 2 in process 0")
        assert "reached" not in process.out


def test_barrier_ends_in_time_and_names_who_is_missing_and_all_end(run):
    processes = run(
        "if index == 0:\n    barrier(cluster, 'the first step', 1)\nelse:\n    time.sleep(50)"
    )
    assert ends(processes, 45) == [2, 1]
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


@pytest.mark.slow
def test_two_machines_sum_and_agree(machines):
    processes = machines(SUM_AND_AGREE)
    assert ends(processes) == [0, 0], processes[0].err + processes[1].err
    for process in processes:
        assert process.err == ""
        assert " 4 22.0 ['from 0', 'from 1']\n" in process.out


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES)
def test_machine_whose_own_name_is_loopback_is_named(machines, node):
    processes = machines("print('reached')", **{node: {node: "127.0.1.1"}})
    assert ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith(f"error: on {node} its own name resolves to 127.0.1.1")
        assert "reached" not in process.out


def test_lone_process_agrees_with_itself():
    assert gather(ALONE, "name", "text") == ["text"]
    barrier(ALONE, "name", 0)
    preflight(ALONE, {"config.seed": "1"})
    leave(ALONE)
    assert ALONE.is_first


def test_config_facts_name_every_field():
    facts = config_facts(load_tiny_config())
    assert facts["config.batch_size"] == "8"
    assert facts["config.data.pool"] == "16"
    assert not [name for name, value in facts.items() if value.startswith("{")]


def test_processes_that_count_differently_are_refused(run):
    processes = run("print('reached')", counts=(2, 3))
    assert ends(processes) == [2, 2]
    for process in processes:
        assert process.err.startswith("error: the number of processes is 2 in process 0 on ")
        assert " and 3 in process 1 on " in process.err
        assert "reached" not in process.out


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
