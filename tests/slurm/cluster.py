"""A real SLURM of two nodes on this machine, in a folder of its own, for tests.

    python tests/slurm/cluster.py up FOLDER      then: export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm/cluster.py down FOLDER

Needs root and the programs of Debian's slurm-wlm and munge. Both nodes are this machine under two
names, each with a slurmd and a port of its own. While it is up, /etc/hosts knows the names.
"""

import dataclasses
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("dscint-node1", "dscint-node2")
HOSTS = Path("/etc/hosts")
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
}

CONFIG = """\
ClusterName=dscint
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=15
MessageTimeout=60
MinJobAge=3600
SchedulerParameters=sched_interval=2,sched_min_interval=0
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no SLURM can be set up here; None if it can."""
    absent = [program for program in PROGRAMS if not _which(program)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0 or not os.access(HOSTS, os.W_OK):
        return "setting up SLURM needs root"
    return None


@dataclasses.dataclass(frozen=True)
class Job:
    """A submitted job and the file that its output goes to."""

    id: int
    log_file: Path

    @property
    def log(self) -> str:
        """What it has written so far, to stdout and stderr together."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    Attributes:
      folder: everything it writes; `slurm.conf` among it.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, in which SLURM's commands speak to this SLURM."""
        outer = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        return {**outer, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def submit(
        self,
        command: Sequence[str] | str,
        *,
        nodes: int = 2,
        tasks_per_node: int = 1,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Job:
        """Submits a batch script in which srun runs the command, once a task.

        Args:
          command: what each task runs: words, or a line for bash.
          nodes, tasks_per_node: where.
          options: further ones of sbatch.
          environment: what the job sees beyond this process's environment.
        """
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        task = " ".join("'" + word.replace("'", "'\\''") + "'" for word in map(str, words))
        script = self.folder / f"job-{time.monotonic_ns()}.sh"
        script.write_text(f"#!/bin/bash\nexec srun --kill-on-bad-exit=1 {task}\n")
        return self.sbatch(
            *(f"--nodes={nodes}", f"--ntasks-per-node={tasks_per_node}", *options, str(script)),
            environment=environment,
        )

    def sbatch(self, *arguments: str, environment: dict[str, str] | None = None) -> Job:
        """Submits as `sbatch ARGUMENTS` does; output goes to a file in the folder."""
        log = self.folder / f"job-{time.monotonic_ns()}.log"
        done = subprocess.run(
            # Output is appended, as a requeued job's should be.
            ["sbatch", "--parsable", f"--output={log}", "--open-mode=append", *arguments],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode:
            raise RuntimeError(f"sbatch: {done.stderr}")
        return Job(int(done.stdout.split(";")[0]), log)

    def job(self, number: int, log_file: Path) -> Job:
        """A job that something else has submitted."""
        return Job(number, log_file)

    def state(self, job: Job) -> tuple[str, int]:
        """The job's state, such as PENDING, RUNNING, COMPLETED; and its exit code so far."""
        shown = self._command("scontrol", "show", "job", str(job.id))
        state = re.search(r"JobState=(\w+)", shown)
        code, number = map(int, re.search(r"ExitCode=(\d+):(\d+)", shown).groups())
        return state[1], code or (128 + number if number else 0)

    def wait(self, job: Job, timeout: float = 120) -> tuple[str, int, str]:
        """Waits until the job has ended.

        Returns:
          its state, exit code (128 + the signal's number if one ended it) and log.

        Raises:
          TimeoutError: it has not ended in time; with its log.
        """
        return self.wait_for(job, ENDED, timeout)

    def wait_for(self, job: Job, states: set[str], timeout: float = 120) -> tuple[str, int, str]:
        """Waits until the job is in one of the states; otherwise as `wait`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            state, code = self.state(job)
            if state in states:
                return state, code, job.log
            time.sleep(0.3)
        raise TimeoutError(f"job {job.id} is {state} after {timeout} s; its log:\n{job.log}")

    def wait_for_log(self, job: Job, text: str, timeout: float = 120) -> str:
        """Waits until the log holds a text, and returns the log.

        Raises:
          TimeoutError: it does not hold it in time, or the job ended without it.
        """
        deadline = time.monotonic() + timeout
        while text not in job.log:
            ended = self.state(job)[0] in ENDED and text not in job.log
            if ended or time.monotonic() > deadline:
                raise TimeoutError(f"no '{text}' in the log of job {job.id}:\n{job.log}")
            time.sleep(0.2)
        return job.log

    def requeue(self, job: Job) -> None:
        """Ends the job as a preemption does (SIGTERM, later SIGKILL) and queues it again."""
        self._command("scontrol", "requeue", str(job.id))

    def signal(self, job: Job, name: str, *, batch: bool = False) -> None:
        """Sends a signal, such as TERM, to every task of the job's steps, or to its script."""
        self._command("scancel", f"--signal={name}", *["--batch"] * batch, str(job.id))

    def cancel(self, job: Job) -> None:
        """Cancels the job: SIGTERM, later SIGKILL."""
        self._command("scancel", str(job.id))

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout


def up(folder: Path) -> Slurm:
    """Starts munged, slurmctld and two slurmd; ready for jobs when it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    # munged insists on a folder that others can enter but not write to.
    folder.chmod(0o755)
    for name in ("state", *NODES):
        (folder / name).mkdir(exist_ok=True)
    ports = _free_ports(1 + len(NODES))
    nodes = (
        f"NodeName={name} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port} CPUs=4"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    (folder / "slurm.conf").write_text(
        CONFIG.format(host=_host(), controller_port=ports[0], folder=folder, nodes="\n".join(nodes))
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    slurm = Slurm(folder)
    _add_hosts(folder)
    try:
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        _start(
            slurm,
            *(_which("munged"), "--force", f"--socket={folder}/munge.socket"),
            *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
        )
        _start(slurm, _which("slurmctld"))
        for name in NODES:
            _start(slurm, _which("slurmd"), "-N", name)
        _wait_until_idle(slurm)
    except BaseException:
        down(folder)
        raise
    return slurm


def down(folder: Path) -> None:
    """Cancels what runs, ends the daemons, and takes the nodes' names out of /etc/hosts."""
    slurm = Slurm(folder)
    if (folder / "slurmctld.pid").exists():
        subprocess.run(["scancel", "--user=root"], env=slurm.environment, timeout=30)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and slurm._command("squeue", "--noheader").strip():
            time.sleep(0.3)
    for name in (*NODES, "slurmctld", "munged"):
        _end(folder / f"{name}.pid")
    _remove_hosts(folder)


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _which(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _mark(folder: Path) -> str:
    # A SLURM takes away its own lines: another one may be up.
    return f"# the SLURM of {folder}"


def _add_hosts(folder: Path) -> None:
    # In place: /etc/hosts is often mounted into a container, where it cannot be replaced.
    with HOSTS.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.writelines(f"127.0.0.1 {name} {_mark(folder)}\n" for name in NODES)


def _remove_hosts(folder: Path) -> None:
    with HOSTS.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept = [line for line in file if not line.endswith(f"{_mark(folder)}\n")]
        file.seek(0)
        file.writelines(kept)
        file.truncate()


def _start(slurm: Slurm, *command: str) -> None:
    """Runs a daemon's program, which returns when the daemon is in the background."""
    log = slurm.folder / f"{Path(command[0]).name}.start"
    with log.open("a") as file:
        done = subprocess.run(
            command,
            env=slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            timeout=30,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {log.read_text()}")


def _wait_until_idle(slurm: Slurm, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    shown = ""
    while time.monotonic() < deadline:
        try:
            shown = slurm._command("sinfo", "--noheader", "--Node", "--format=%T")
        except RuntimeError as error:
            shown = str(error)
        if shown.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.3)
    logs = "\n".join(path.read_text()[-2000:] for path in slurm.folder.glob("*.log"))
    raise TimeoutError(f"the nodes are {shown.split()} after {timeout} s:\n{logs}")


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(50):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        pass


def main() -> None:
    """The command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    folder = Path(sys.argv[2]).resolve()
    if sys.argv[1] == "down":
        down(folder)
        return
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    up(folder)
    print(f"export SLURM_CONF={folder}/slurm.conf")


if __name__ == "__main__":
    main()
