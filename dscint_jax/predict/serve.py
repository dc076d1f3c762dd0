"""The command line of a service that a PACS sends studies to, and that sends answers back.

    python -m dscint_jax.predict.serve --workdir runs/dscint --state state --peers PACS@pacs \\
        --answer_to PACS@pacs:4242

In: trained runs, a folder for the queue, and who is talked to. Out: a Structured Report and a
Secondary Capture of every study, in the PACS. It runs until SIGTERM or Ctrl-C.
"""

import contextlib
import functools
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dscint_jax.command import run_command
from dscint_jax.pacs.address import (
    Address,
    Peer,
    Tls,
    add_own_options,
    check_pacs,
    read_address,
    read_peers,
)
from tfds_builder.commandline.command import CommandParser, positive_number
from tfds_builder.commandline.errors import UserError, reason
from tfds_builder.commandline.progress import say

if TYPE_CHECKING:
    from dscint_jax.pacs.listener import Limits
    from dscint_jax.pacs.queue import Queue

LOOK_SECONDS = 0.2
FAILED_PAUSE_SECONDS = 10.0
MIB = 2**20


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.predict.serve",
        description="Take studies from a PACS, read them with trained networks, and send a report "
        "and a picture back. For research: no finding for a patient's care.",
        epilog="Example: python -m dscint_jax.predict.serve --workdir runs/quickstart/dscint "
        "--state runs/service --peers PACS@10.0.0.5 --answer_to PACS@10.0.0.5:4242",
    )
    add = parser.add_argument
    add("--workdir", type=Path, nargs="+", required=True, dest="workdirs", metavar="DIR",
        help="directory of a training; of several, the probabilities are averaged")  # fmt: skip
    add("--state", type=Path, required=True, metavar="DIR",
        help="folder for the queue; one service a folder")  # fmt: skip
    add("--peers", type=read_peers, required=True, metavar="AET@HOST,...",
        help="who may send: AE titles, with their hosts where known")  # fmt: skip
    add("--answer_to", type=read_address, required=True, metavar="ADDRESS",
        help="where answers go: AET@host:port, AET@host:port/tls, or a DICOMweb URL")  # fmt: skip
    add("--port", type=int, default=11112, help="where to listen (default: 11112)")
    add("--bind", default="0.0.0.0", metavar="ADDRESS",
        help="own address to listen on (default: all)")  # fmt: skip
    add_own_options(parser)
    add("--quiet_seconds", type=float, default=30.0, metavar="S",
        help="a study that got nothing for so long is complete (default: 30)")  # fmt: skip
    add("--keep", action="store_true",
        help="keep images whose answer was taken (default: delete them)")  # fmt: skip
    add("--checkpoint", default="best", help="best (by validation F-1), latest, or a step")
    add("--least_confidence", type=float, default=0.0, metavar="P",
        help="give no answer where the largest probability is below this (default: 0)")  # fmt: skip
    add("--accept", action="store_true",
        help="take files that only a rule of thumb is against")  # fmt: skip
    add("--workers", type=positive_number, default=1, metavar="N",
        help="processes that open files (default: 1)")  # fmt: skip
    add("--associations", type=positive_number, default=8, metavar="N",
        help="associations at once (default: 8)")  # fmt: skip
    add("--most_mib", type=positive_number, default=128, metavar="N",
        help="largest instance, MiB (default: 128)")  # fmt: skip
    add("--free_mib", type=positive_number, default=1024, metavar="N",
        help="room that stays free on the disk, MiB (default: 1024)")  # fmt: skip
    add("--idle_seconds", type=positive_number, default=30, metavar="S",
        help="a peer that sends nothing for so long is cut off (default: 30)")  # fmt: skip
    given = vars(parser.parse_args())
    check_pacs()
    tls = Tls(*(given.pop(f"tls_{name}") for name in ("certificate", "key", "ca")))
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.pacs.listener import Limits

    limits = Limits(
        associations=given.pop("associations"),
        instance_bytes=given.pop("most_mib") * MIB,
        idle_seconds=given.pop("idle_seconds"),
        free_bytes=given.pop("free_mib") * MIB,
    )
    serve(**given, tls=tls, limits=limits)


def serve(
    workdirs: Sequence[Path],
    state: Path,
    peers: Sequence[Peer],
    answer_to: Address,
    *,
    port: int,
    bind: str,
    ae_title: str,
    quiet_seconds: float,
    keep: bool,
    checkpoint: str,
    least_confidence: float,
    accept: bool,
    workers: int,
    tls: Tls,
    limits: "Limits",
) -> None:
    """Serves until the process is told to stop; the arguments are the command line's.

    Raises:
      UserError: an option, a run, a certificate or the state folder cannot be used.
    """
    from dscint_jax.pacs.listener import Listener
    from dscint_jax.pacs.queue import Queue
    from dscint_jax.pacs.send import send
    from dscint_jax.predict.incoming import Incoming
    from dscint_jax.predict.predict import check_confidence, open_networks
    from dscint_jax.predict.studies import worker_pool

    check_confidence(least_confidence)
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: a number up to 65535 is needed")
    if not 0 <= quiet_seconds < float("inf"):
        raise UserError(f"--quiet_seconds {quiet_seconds}: a number of seconds is needed")
    own_tls, signals = tls.server(), _Signals()
    with contextlib.closing(Queue(state)) as queue, worker_pool(workers) as pool, signals:
        incoming = Incoming(
            queue,
            open_networks(workdirs, checkpoint),
            pool,
            functools.partial(send, target=answer_to, title=ae_title, tls=tls),
            str(answer_to),
            quiet_seconds=quiet_seconds,
            least_confidence=least_confidence,
            accept=accept,
            keep=keep,
        )
        own = (bind, port)
        with Listener(own, ae_title, peers, queue.put, queue.free_bytes, limits, own_tls) as heard:
            say(f"{ae_title} listens on port {heard.port}; {_state(queue)}")
            while not signals.stop():
                try:
                    incoming.step(signals.stop)
                except (UserError, OSError) as error:
                    # Such as a full disk: what is on it stays, and is taken up again.
                    say(f"{reason(error)}; again in {FAILED_PAUSE_SECONDS:.0f} s")
                    time.sleep(FAILED_PAUSE_SECONDS)
                time.sleep(LOOK_SECONDS)
        say(f"stopped; {_state(queue)}")


def _state(queue: "Queue") -> str:
    return ", ".join(f"{count} {name}" for name, count in queue.counts().items())


class _Signals:
    """A context in which SIGTERM only asks: a step that was begun is finished."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> "_Signals":
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def stop(self) -> bool:
        """Whether to stop."""
        return self._asked

    def _remember(self, *_: object) -> None:
        self._asked = True


if __name__ == "__main__":
    run_command(main)
