"""What was measured, as a table and as JSON."""

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dscint_jax.run.provenance import processor
from dscint_jax.throughput.compare import NETWORKS, PEER_NETWORKS, Comparison, compare, workload_of
from dscint_jax.throughput.workload import JAX, ONNXRUNTIME
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import check_writable, write_json
from tfds_builder.commandline.progress import say


def measure_all(
    networks: Sequence[str],
    *,
    size: tuple[int, int],
    batches: Sequence[int],
    dtype: str,
    train: bool,
    seconds: int,
    peers: Sequence[str],
    rounds: int,
    out: Path | None,
) -> bool:
    """Measures every network at every batch size and prints a table.

    What fails is told and the others go on. `out` is written after each, so that nothing is lost.

    Returns:
      Whether anything failed, or a ratio was refused.

    Raises:
      UserError: no such network, or the peer does not have it; `out` cannot be written.
    """
    for name in networks:
        if name not in NETWORKS:
            raise UserError(f"no network '{name}' to measure; there are {', '.join(NETWORKS)}")
        if {*peers} - {ONNXRUNTIME} and name not in PEER_NETWORKS:
            raise UserError(f"--peer: PyTorch has no {name}; it has {', '.join(PEER_NETWORKS)}")
    if ONNXRUNTIME in peers and (train or dtype != "float32"):
        raise UserError("--peer onnxruntime predicts in float32 alone; add --forward")
    if out is not None:
        check_writable(out.parent)
    found: list[Comparison] = []
    errors: list[str] = []
    for name in networks:
        for batch in batches:
            workload = workload_of(
                name, size=size, batch=batch, dtype=dtype, train=train, seconds=float(seconds)
            )
            try:
                found.append(compare(workload, peers, rounds))
            except UserError as error:
                errors.append(str(error))
                say(f"failed: {error}")
            if out is not None:
                document = {
                    "processor": processor(),
                    "system": platform.platform(),
                    "networks": [comparison.to_dict() for comparison in found],
                    "errors": errors,
                }
                write_json(out, document)
    Console(highlight=False).print(_table(found))
    return bool(errors) or any(comparison.refused for comparison in found)


def _table(found: Sequence[Comparison]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("network, batch", no_wrap=True)
    for title in ("images/s", "first, s", "GiB", "of peak", "ratio (range)"):
        table.add_column(title, justify="right", no_wrap=True)
    for comparison in found:
        first = f"{comparison.workload.network}, {comparison.workload.batch}"
        for name, measured in comparison.measured.items():
            table.add_row(
                first if name == JAX else f"  {name}",
                f"{comparison.images_s(name):.1f}",
                f"{statistics.median(m.first_step_s for m in measured):.1f}",
                f"{max(m.peak_bytes for m in measured) / 2**30:.2f}",
                f"{comparison.of_peak(name):.0%}",
                "" if name == JAX else _ratio(comparison.ratios(name)),
            )
    return table


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "refused"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
