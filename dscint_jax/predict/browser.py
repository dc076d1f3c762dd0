"""A page that reads scans in the browser: one HTML file with the network in it.

    npm install onnxruntime-web@1 dicom-parser@1 upng-js@2
    python -m dscint_jax.predict.browser --model dscint.onnx --out dscint.html

In: an ONNX file of `dscint_jax.export`, and three packages of npm. Out: a page into which DICOM and
PNG files are dropped. It loads nothing: its own rule (Content-Security-Policy) forbids the browser
any connection, so that no image can leave the machine. What the page reads is decided in
`template/browser.js`; it is less than `dscint_jax.predict` reads, and the rest is refused.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_text

TEMPLATE = Path(__file__).parent / "template"

SCRIPTS = {
    "pako": "dist/pako.min.js",
    "upng-js": "UPNG.js",
    "dicom-parser": "dist/dicomParser.min.js",
}
"""By the package of npm, the file of it that is a script of the page, in the order they need."""

RUNTIME = "onnxruntime-web"
RUNTIME_FILES = {
    "module": "dist/ort.wasm.bundle.min.mjs",
    "wasm": "dist/ort-wasm-simd-threaded.wasm",
}
"""What computes: WebAssembly, on the processor."""

NEEDED = ("records", "classes", "temperature", "least_confidence", "card")
"""Metadata that the page shows, or decides by."""


def browser_page(model: bytes, metadata: Mapping[str, str], packages: Path) -> str:
    """The page.

    Args:
      model: the ONNX graph, counts to probabilities.
      metadata: of it.
      packages: npm's folder node_modules.

    Raises:
      UserError: a package is missing.
    """
    # After the arguments are known to be right: they take seconds to import.
    from dscint_jax.export.metadata import NOT_FITTED
    from dscint_jax.report.html import render
    from dscint_jax.report.tables import plain

    parts = {"model": model} | {
        name: _file_of(packages, RUNTIME, file) for name, file in RUNTIME_FILES.items()
    }
    about = {
        "classes": [plain(label) for label in json.loads(metadata["classes"])],
        "records": metadata["records"],
        "calibrated": metadata["temperature"] != NOT_FITTED,
        "least": {
            accuracy: least
            for accuracy, least in json.loads(metadata["least_confidence"]).items()
            if least is not None
        },
    }
    return render(
        TEMPLATE / "browser.html",
        scripts=(),
        title=f"{metadata['network']} in the browser",
        libraries=[
            Markup(_text_of(packages, name, file).replace("</script", "<\\/script"))
            for name, file in SCRIPTS.items()
        ],
        # Packed alike each time: the same content gives the same page.
        parts={
            name: base64.b64encode(gzip.compress(content, mtime=0)).decode()
            for name, content in parts.items()
        },
        about=about,
        card=metadata["card"],
        licences=[_licence(packages, name) for name in (*SCRIPTS, RUNTIME)],
        own=Markup((TEMPLATE / "browser.js").read_text()),
    )


def _file_of(packages: Path, name: str, file: str) -> bytes:
    try:
        return (packages / name / file).read_bytes()
    except OSError:
        wanted = " ".join((RUNTIME, *(name for name in SCRIPTS if name != "pako")))
        raise UserError(
            f"--packages {packages} has no {name}/{file}; first: npm install {wanted}"
        ) from None


def _text_of(packages: Path, name: str, file: str) -> str:
    return _file_of(packages, name, file).decode()


def _licence(packages: Path, name: str) -> str:
    """Name, version and licence of a package, with the licence's text where it brings one."""
    about = json.loads(_text_of(packages, name, "package.json"))
    texts = [
        path.read_text()
        for path in sorted((packages / name).iterdir())
        if path.name.upper().startswith("LICEN") and path.is_file()
    ]
    return "\n\n".join([f"{name} {about['version']}, {about['license']}", *texts])


def _metadata_of(path: Path) -> tuple[bytes, dict[str, str]]:
    """An ONNX file and its metadata; UserError for a file of other origin."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise UserError(
            "needs the package onnx; pip install -c constraints.txt '.[onnx]'"
        ) from error
    try:
        content = path.read_bytes()
        properties = onnx.load_model_from_string(content).metadata_props
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror}") from error
    # protobuf has errors of its own for bytes that are no message.
    except Exception as error:
        raise UserError(f"--model {path} is no ONNX file") from error
    metadata = {entry.key: entry.value for entry in properties}
    if missing := [name for name in NEEDED if name not in metadata]:
        raise UserError(
            f"--model {path} does not say its {missing[0]}; write it by "
            "python -m dscint_jax.export --format onnx"
        )
    return content, metadata


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.predict.browser",
        description="Write one HTML page that reads scans in the browser, by the network that is "
        "in it; no image leaves the machine.",
    )
    parser.add_argument("--model", type=Path, required=True, help="a .onnx file of an export")
    parser.add_argument("--out", type=Path, required=True, help="page to write, NAME.html")
    parser.add_argument(
        "--packages",
        type=Path,
        default=Path("node_modules"),
        metavar="DIR",
        help="where npm put onnxruntime-web, dicom-parser and upng-js (default: node_modules)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    arguments = parser.parse_args()
    if arguments.out.suffix != ".html":
        raise UserError(f"--out {arguments.out} must end in .html")
    if arguments.out.exists() and not arguments.overwrite:
        raise UserError(f"--out {arguments.out} exists; choose another name, or --overwrite it")
    page = browser_page(*_metadata_of(arguments.model), arguments.packages)
    write_text(arguments.out, page)
    print(f"{arguments.out}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run_command(main)
