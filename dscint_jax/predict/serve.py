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
from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.pacs.address import (
    add_own_options,
    check_pacs,
    own_tls,
    read_address,
    read_peers,
)
from tfds_builder.commandline.command import CommandParser, positive_number
from tfds_builder.commandline.errors import UserError, reason
from tfds_builder.commandline.progress import say

LOOK_SECONDS = 0.2
FAILED_PAUSE_SECONDS = 10.0


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()
    check_pacs()
    if not 0 < arguments.port < 2**16:
        raise UserError(f"--port {arguments.port}: 1 to 65535 is needed")
    if not 0 <= arguments.quiet_seconds < float("inf"):
        raise UserError(f"--quiet_seconds {arguments.quiet_seconds}: 0 or more is needed")
    tls = own_tls(arguments)
    listening_tls = tls.server()
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.pacs.listener import Limits, Listener
    from dscint_jax.pacs.queue import Queue
    from dscint_jax.pacs.send import send
    from dscint_jax.predict.incoming import Incoming
    from dscint_jax.predict.predict import check_confidence, open_networks
    from dscint_jax.predict.studies import worker_pool

    check_confidence(arguments.least_confidence)
    # SIGTERM only asks: a step that was begun is finished. It may come twice, so it takes no lock.
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    with (
        contextlib.closing(Queue(arguments.state)) as queue,
        worker_pool(arguments.workers) as pool,
    ):
        incoming = Incoming(
            queue,
            open_networks(arguments.workdirs, arguments.checkpoint),
            pool,
            functools.partial(send, target=arguments.answer_to, title=arguments.ae_title, tls=tls),
            str(arguments.answer_to),
            quiet_seconds=arguments.quiet_seconds,
            least_confidence=arguments.least_confidence,
            accept=arguments.accept,
            keep=arguments.keep,
        )
        with Listener(
            (arguments.bind, arguments.port),
            arguments.ae_title,
            arguments.peers,
            queue.put,
            queue.free_bytes,
            Limits(instance_bytes=arguments.most_mib * 2**20),
            listening_tls,
        ):
            say(f"{arguments.ae_title} listens on port {arguments.port}; {queue.summary()}")
            while not asked:
                try:
                    incoming.step(lambda: bool(asked))
                except (UserError, OSError) as error:
                    # Such as a full disk: what is on it stays, and is taken up again.
                    say(f"{reason(error)}; again in {FAILED_PAUSE_SECONDS:.0f} s")
                    time.sleep(FAILED_PAUSE_SECONDS)
                time.sleep(LOOK_SECONDS)
        say(f"stopped; {queue.summary()}")


def _parser() -> CommandParser:
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
    add("--most_mib", type=positive_number, default=128, metavar="N",
        help="largest instance that is taken, MiB (default: 128)")  # fmt: skip
    return parser


if __name__ == "__main__":
    run_command(main)
