"""How the processes of a run were started: what each of them is told by whoever started it.

In: the flags of main and the environment's variables. Out: which process this is, of how many, and
where they meet; None for a process that runs alone. Nothing is contacted and no device is touched.
"""

import dataclasses
import importlib.util
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from dscint_jax.errors import DscintError

# Above the ports that Linux gives to outgoing connections, as JAX's own choice is.
FIRST_PORT, PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process's place among those of its run.

    Attributes:
      kind: who says so: 'flags', 'environment', 'Open MPI', 'SLURM' or 'TPU'.
      coordinator: HOST:PORT where process 0 is; empty if JAX finds it by itself (TPU).
      process_index: of this process, from 0.
      process_count: of all, on all machines.
      local_index, local_count: the same among those on this machine, as far as is known.
      node: what this machine is called by who started the process.
    """

    kind: str
    coordinator: str
    process_index: int
    process_count: int
    local_index: int = 0
    local_count: int = 1
    node: str = dataclasses.field(default_factory=socket.gethostname)

    @property
    def host(self) -> str:
        """The coordinator's host, without the port and an IPv6 address's brackets."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return int(self.coordinator.rpartition(":")[2])


def launch_of_flags(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Launch | None:
    """What the three flags of main say; None if none is given.

    Raises:
      DscintError: one is missing or has an impossible value.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    absent = [flag for flag, value in given.items() if value is None]
    if len(absent) == len(given):
        return None
    if absent:
        raise DscintError(
            f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing: "
            f"{', '.join(given)} go together"
        )
    return _checked(
        Launch("flags", coordinator_address, process_id, num_processes),
        *given,
    )


def launch_of_environment(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says; None for a process that runs alone.

    Raises:
      DscintError: it says something incomplete or impossible.
    """
    for read in (_variables, _open_mpi, _slurm, _tpu):
        if launch := read(environment):
            return launch
    return None


def local_devices(launch: Launch, environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this machine that this process takes; None for all that it sees.

    One process on a machine takes them all. Of several, each takes an equal share, unless whoever
    started them has given each its own already.

    Raises:
      DscintError: the GPUs cannot be shared out evenly.
    """
    if launch.local_count == 1 or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    gpus = visible_gpus(environment)
    # One GPU visible to each of several processes: each was given its own.
    if gpus <= 1:
        return None
    share, rest = divmod(gpus, launch.local_count)
    if rest or not share:
        raise DscintError(
            f"{launch.local_count} processes on {launch.node} cannot share its {gpus} GPUs evenly; "
            f"start one process a node, or one a GPU"
        )
    return [launch.local_index * share + n for n in range(share)]


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many NVIDIA GPUs this process sees, told without starting CUDA."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        named = [name.strip() for name in listed.split(",") if name.strip()]
        return len(named[: named.index("-1")] if "-1" in named else named)
    return sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def first_node(nodes: str) -> str:
    """The first name of a SLURM list of nodes: 'rack[02-07,11]-gpu,login' gives 'rack02-gpu'."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def tasks_per_node(counts: str) -> list[int]:
    """How many tasks each node has: SLURM's '2(x3),1' gives [2, 2, 2, 1]."""
    found = []
    for part in counts.split(","):
        tasks, _, repeat = part.partition("(x")
        found += [int(tasks)] * int(repeat.rstrip(")") or 1)
    return found


def _variables(environment: Mapping[str, str]) -> Launch | None:
    """JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID: the flags as variables.

    In an indexed Job of Kubernetes JOB_COMPLETION_INDEX stands for the last.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = map(environment.get, names)
    index = index or environment.get("JOB_COMPLETION_INDEX")
    # The address alone overrides that of SLURM or Open MPI.
    if not count:
        return None
    if not address or not index:
        raise DscintError(
            f"JAX_NUM_PROCESSES is set and {names[0] if not address else names[2]} is not; set "
            f"all of {', '.join(names)}, or none"
        )
    launch = Launch(
        "environment", address, *_integers(JAX_PROCESS_ID=index, JAX_NUM_PROCESSES=count)
    )
    return _checked(launch, *names)


def _open_mpi(environment: Mapping[str, str]) -> Launch | None:
    prefix = "OMPI_COMM_WORLD_"
    names = [prefix + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    if not all(name in environment for name in names):
        return None
    rank, size, local_rank, local_size = _integers(**{name: environment[name] for name in names})
    if size == 1:
        return None
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        job, host = _open_mpi_job(environment, all_here=local_size == size)
        address = f"{host}:{_port(environment, job)}"
    return _checked(
        Launch("Open MPI", address, rank, size, local_rank, local_size),
        "JAX_COORDINATOR_ADDRESS",
        names[1],
        names[0],
    )


def _open_mpi_job(environment: Mapping[str, str], *, all_here: bool) -> tuple[int, str]:
    """A number that is the job's own, and the host of rank 0."""
    # Such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911; the job's number counts in 4096s.
    found = re.match(
        r"(\d+)\.\d+;tcp(?:6://\[([^,\]]+)|://([^,:]+))",
        environment.get("OMPI_MCA_orte_hnp_uri", ""),
    )
    name = environment.get("PMIX_NAMESPACE", "")
    job = int(found[1]) // 4096 if found else sum(name.encode())
    if all_here:
        return job, "127.0.0.1"
    if not found:
        raise DscintError(
            "this Open MPI does not say where rank 0 is; add "
            "-x JAX_COORDINATOR_ADDRESS=HOST:PORT to mpirun, with the host of rank 0"
        )
    return job, f"[{found[2]}]" if found[2] else found[3]


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    # Only srun sets all of these. A batch script, or a lone python in it, has no step; a shell
    # inside an allocation has one of a single task.
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    if not all(environment.get(name) for name in names):
        return None
    count, index, job = _integers(**{name: environment[name] for name in (*names[:2], names[3])})
    if count == 1:
        return None
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        step = environment.get("SLURM_STEP_ID", "0")
        # Steps of one job may share a node.
        number = job + 97 * (int(step) if step.isdecimal() else 0)
        address = f"{first_node(environment[names[2]])}:{_port(environment, number)}"
    per_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = int(environment.get("SLURM_NODEID", "0"))
    launch = Launch(
        "SLURM",
        address,
        index,
        count,
        local_index=int(environment.get("SLURM_LOCALID", "0")),
        local_count=per_node[node] if node < len(per_node) else 1,
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
    )
    return _checked(launch, "JAX_COORDINATOR_ADDRESS", names[0], names[1])


def _tpu(environment: Mapping[str, str]) -> Launch | None:
    """A slice of several hosts, or one whose hosts JAX has to ask Google's metadata server for."""
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return Launch("TPU", "", 0, len(hosts.split(","))) if "," in hosts else None
    if "TPU_SKIP_MDS_QUERY" in environment or not importlib.util.find_spec("libtpu"):
        return None
    present = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return Launch("TPU", "", 0, 0) if present else None


def _port(environment: Mapping[str, str], number: int) -> int:
    """JAX_COORDINATOR_PORT, or a port that is probably the job's alone."""
    port = environment.get("JAX_COORDINATOR_PORT")
    return _integers(JAX_COORDINATOR_PORT=port)[0] if port else FIRST_PORT + number % PORTS


def _integers(**texts: str) -> list[int]:
    for name, text in texts.items():
        if not text.isdecimal():
            raise DscintError(f"{name}={text} in the environment is not a number")
    return [int(text) for text in texts.values()]


def _checked(launch: Launch, address: str, count: str, index: str) -> Launch:
    """The same launch; the names are those under which the user gave the values."""
    host, colon, port = launch.coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise DscintError(f"{address} '{launch.coordinator}' is not HOST:PORT, such as node1:12345")
    if launch.process_count < 1:
        raise DscintError(f"{count} is {launch.process_count}; it counts from 1")
    if not 0 <= launch.process_index < launch.process_count:
        raise DscintError(
            f"{index} is {launch.process_index}; with {count} {launch.process_count} it is one of "
            f"0 to {launch.process_count - 1}"
        )
    return launch
