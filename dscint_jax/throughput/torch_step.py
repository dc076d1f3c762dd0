"""The same steps in PyTorch, timed: a second opinion on how fast they can be here."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from dscint_jax.throughput.torch_dscint import Dscint
from dscint_jax.throughput.workload import (
    EXACT,
    GEMM_SIDE,
    Measurement,
    Workload,
    gemm_flops,
    measured,
)
from tfds_builder.commandline.command import peak_memory
from tfds_builder.commandline.errors import UserError


def measure(workload: Workload, weights: Path, *, compiled: bool) -> Measurement:
    """Times the workload in this process, which should do nothing else.

    Args:
      workload: what to time.
      weights: the .safetensors file that `jax_step.measure` wrote.
      compiled: whether by torch.compile.

    Raises:
      UserError: a package is missing, or the weights are not those of the network.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    # What JAX does by default on the GPUs that have it.
    torch.set_float32_matmul_precision("high")
    network = _network(workload)
    differing = network.load_state_dict(safetensors.torch.load_file(weights), strict=False)
    missing = [n for n in differing.missing_keys if not n.endswith("num_batches_tracked")]
    if missing or differing.unexpected_keys:
        names = ", ".join([*missing, *differing.unexpected_keys][:5])
        raise UserError(f"PyTorch's {workload.network} has other weights: {names}")
    parameters = torch.float64 if workload.dtype == EXACT else torch.float32
    network = network.to(device, parameters).train(workload.train)
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    decaying = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decaying}, {"params": others, "weight_decay": 0.0}],
        workload.LEARNING_RATE,
        weight_decay=workload.WEIGHT_DECAY,
        fused=True,
    )
    forward = torch.compile(network) if compiled else network
    counts = torch.from_numpy(workload.counts().transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(workload.labels()).long().to(device)

    def logits() -> torch.Tensor:
        images = torch.sqrt(counts.to(parameters) / workload.SCALE).clamp(max=workload.CLIP)
        images = images.contiguous(memory_format=torch.channels_last)
        low = workload.dtype == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=low):
            return forward(images).to(parameters)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        norm = torch.zeros(())
        if workload.train:
            loss = F.cross_entropy(logits(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), workload.CLIP_NORM)
            optimizer.step()
        else:
            with torch.inference_mode():
                loss = F.cross_entropy(logits(), labels)
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), norm

    (loss, norm), times = measured(step, workload.seconds)
    on_gpu = device == "cuda"
    return Measurement(
        framework=f"torch {torch.__version__}{' torch.compile' if compiled else ''}",
        peak_bytes=float(torch.cuda.max_memory_allocated()) if on_gpu else float(peak_memory()),
        loss=float(loss),
        gradient_norm=float(norm),
        gemm_flops=_gemm(workload.dtype, device, GEMM_SIDE["gpu" if on_gpu else "cpu"]),
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        **times,
    )


def _network(workload: Workload) -> nn.Module:
    name = workload.network
    if name == "dscint":
        asked = inspect.signature(Dscint).parameters
        options = {key: workload.options[key] for key in asked if key in workload.options}
        return Dscint(num_classes=workload.CLASSES, **options)
    if name == "inception_v4":
        timm = _imported("timm")
        return timm.create_model(name, num_classes=workload.CLASSES, in_chans=1, drop_rate=0.0)
    make = getattr(_imported("torchvision").models, name)
    network = make(num_classes=workload.CLASSES, **workload.options)
    # The first convolution, whatever it is called, reads one channel.
    place, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, leaf = place.rpartition(".")
    size: Any = (first.kernel_size, first.stride, first.padding)
    one = nn.Conv2d(1, first.out_channels, *size, bias=first.bias is not None)
    setattr(network.get_submodule(parent), leaf, one)
    return network


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    # Built for another version of PyTorch, it fails in ways of its own.
    except Exception as error:
        raise UserError(
            f"{package} cannot be imported ({error}); install the one that fits PyTorch "
            f"{torch.__version__}: pip install {package}"
        ) from error


def _gemm(dtype: str, device: str, side: int) -> float:
    matrix = torch.ones((side, side), dtype=getattr(torch, dtype), device=device)

    def product() -> None:
        torch.matmul(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()

    return gemm_flops(product, side)
