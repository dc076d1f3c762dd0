"""The command line of predictions.

    python -m dscint_jax.predict --workdir runs/dscint --out predictions IMAGES...

In: trained runs, and files or folders of images, or studies of a PACS. Out: two tables, a page a
study, and answers in a PACS.
"""

import contextlib
import tempfile
from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.pacs.address import (
    TLS_OPTIONS,
    Address,
    Tls,
    add_own_options,
    check_pacs,
    own_tls,
    read_address,
    read_dates,
    read_study_uid,
)
from tfds_builder.commandline.command import CommandParser, positive_number
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import say


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.predict",
        description="Read new studies with trained networks. For research: no finding for a "
        "patient's care.",
        epilog="Example: python -m dscint_jax.predict --workdir runs/quickstart/dscint "
        "--out runs/predictions incoming/",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="*",
        metavar="IMAGES",
        help="files (DICOM, PNG, TIFF, JPEG), or folders that are searched",
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument(
        "--workdir",
        type=Path,
        nargs="+",
        default=[],
        dest="workdirs",
        metavar="DIR",
        help="directory of a training; of several, the probabilities are averaged",
    )
    network.add_argument(
        "--model",
        type=Path,
        nargs="+",
        default=[],
        dest="models",
        metavar="FILE",
        help="a .safetensors file of dscint_jax.export, in place of a directory",
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the results")
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    least = parser.add_mutually_exclusive_group()
    least.add_argument(
        "--least_confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="give no answer where the largest probability is below this (default: 0)",
    )
    least.add_argument(
        "--least_accuracy",
        type=float,
        metavar="A",
        help="the same at the probability that evaluation chose on validation studies, for answers "
        "to be right this often (0.9 or 0.95)",
    )
    parser.add_argument(
        "--accept", action="store_true", help="take files that only a rule of thumb is against"
    )
    parser.add_argument(
        "--deidentified",
        action="store_true",
        help="leave patients, studies and files' names out of what is written",
    )
    parser.add_argument(
        "--dicom",
        action="store_true",
        help="write a Structured Report and a picture as DICOM objects, too (extra `dicom`)",
    )
    parser.add_argument(
        "--no_pages",
        action="store_false",
        dest="pages",
        help="write no page a study; the tables and index.html stay",
    )
    parser.add_argument(
        "--workers",
        type=positive_number,
        default=1,
        metavar="N",
        help="processes that open files (default: 1)",
    )
    _add_pacs_options(parser)
    arguments = parser.parse_args()
    source, target, out = arguments.from_pacs, arguments.to_pacs, arguments.out
    if bool(source) == bool(arguments.inputs):
        raise UserError("give images, or --from_pacs, and not both; see --help")
    if not source and (arguments.study or arguments.study_date):
        raise UserError("--study and --study_date name what --from_pacs retrieves; give it, too")
    if source and not arguments.study and not arguments.study_date:
        raise UserError("--from_pacs takes no whole archive; give --study or --study_date")
    if target and arguments.deidentified:
        raise UserError(
            "--to_pacs files results with the patient, and --deidentified leaves the patient out; "
            "choose one"
        )
    if source or target:
        check_pacs()
    title, tls = arguments.ae_title, own_tls(arguments)
    if any(getattr(one, "tls", False) for one in (source, target)):
        # Certificates that cannot be read are told before studies are.
        tls.client()
    wanted = arguments.study, arguments.study_date
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.predict.predict import INDEX_FILE, predict

    options = vars(arguments)
    for name in ("from_pacs", "to_pacs", "study", "study_date", "ae_title", *TLS_OPTIONS):
        del options[name]
    options["dicom"] |= bool(target)
    with contextlib.ExitStack() as stack:
        if source:
            from dscint_jax.pacs.retrieve import retrieve

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dscint-")))

            def fetch() -> None:
                count = retrieve(source, *wanted, folder, title, tls)
                say(f"{count} file{'s' * (count != 1)} retrieved from {source}")

            options |= {"inputs": [folder], "fetch": fetch}
        answers = predict(**options)
    if target:
        _send_results(out, target, title, tls)
    read = sum(answer.said is not None for answer in answers)
    say(f"{read} of {len(answers)} studies read: {out / INDEX_FILE}")


def _send_results(out: Path, target: Address, title: str, tls: Tls) -> None:
    """Sends the results study by study, so that no more than two objects are held at once.

    Raises:
      UserError: the PACS did not take all of them; those of the other studies are there.
    """
    from dscint_jax.pacs.client import Unreachable
    from dscint_jax.pacs.send import send

    errors: list[UserError] = []
    reports = sorted(out.glob("study_*_report.dcm"))
    for report in reports:
        picture = report.with_name(report.name.replace("_report", "_picture"))
        try:
            send([report, picture], target, title, tls)
        except UserError as error:
            errors.append(error)
            if isinstance(error, Unreachable):
                break
    if errors:
        raise UserError(f"{errors[0]}; the results lie in {out}, but not all in the PACS")
    say(f"results of {len(reports)} studies sent to {target}")


def _add_pacs_options(parser: CommandParser) -> None:
    """Adds what concerns a PACS (extra `pacs`)."""
    parser.add_argument(
        "--from_pacs",
        type=read_address,
        metavar="ADDRESS",
        help="retrieve studies instead: AET@host:port, AET@host:port/tls, or a DICOMweb URL",
    )
    parser.add_argument(
        "--study",
        type=read_study_uid,
        nargs="+",
        default=(),
        metavar="UID",
        help="StudyInstanceUIDs to retrieve",
    )
    parser.add_argument(
        "--study_date",
        type=read_dates,
        metavar="DAYS",
        help="days to retrieve: 20260101, or 20260101-20260131",
    )
    parser.add_argument(
        "--to_pacs",
        type=read_address,
        metavar="ADDRESS",
        help="send the results of --dicom there",
    )
    add_own_options(parser)


if __name__ == "__main__":
    run_command(main)
