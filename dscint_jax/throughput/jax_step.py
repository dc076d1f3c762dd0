"""The steps of this package, timed: as a run compiles them, on one device, without augmentation."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from dscint_jax.canary import check_backend
from dscint_jax.config import Augmentation, Config, Data, Optimizer
from dscint_jax.mesh import AXIS, replicate, shard_batch
from dscint_jax.throughput.workload import GEMM_SIDE, Measurement, Workload, gemm_flops, measured
from dscint_jax.training import parallel
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.step import eval_step
from dscint_jax.training.timing import memory_in_use
from dscint_jax.weights.export_torch import torch_state_dict, write_safetensors


def measure(workload: Workload, weights: Path) -> Measurement:
    """Times the workload in this process, which should do nothing else.

    Args:
      workload: what to time.
      weights: a .safetensors file that is written, with the weights of before the first step.

    Raises:
      UserError: the backend computes wrongly, or the network does not take the workload.
    """
    check_backend()
    config = Config(
        steps=10**6,
        batch_size=workload.batch,
        data=Data(clip=workload.CLIP),
        model=workload.network,
        model_options={**workload.options, "dtype": workload.dtype},
        optimizer=Optimizer(
            learning_rate=workload.LEARNING_RATE,
            weight_decay=workload.WEIGHT_DECAY,
            clip_norm=workload.CLIP_NORM,
            schedule="constant",
            warmup_steps=0,
        ),
        augmentation=Augmentation(
            mirror=0, translated=0, rotated=0, scaled=0, intensified=0, thinned=0
        ),
    )
    mesh = jax.make_mesh((1,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:1])
    experiment = make_experiment(config, (1,) * workload.CLASSES, AXIS)
    state = replicate(experiment.initial_state(), mesh)
    write_safetensors(weights, torch_state_dict(state.params, state.batch_stats), {})
    fields = {
        "counts": workload.counts(),
        "scale": np.full(workload.batch, workload.SCALE, np.float32),
        "label": workload.labels(),
        "mask": np.ones(workload.batch, bool),
    }
    batch = shard_batch(fields, mesh)
    train = parallel.compile_train_step(experiment.spec, mesh)
    evaluate = parallel.compile_inference(eval_step, experiment.spec, mesh)

    def step() -> Any:
        nonlocal state
        if workload.train:
            state, result = train(state, batch)
        else:
            result = evaluate(state.params, state.batch_stats, batch)
        return jax.block_until_ready((state, result))[1]

    compile_step = functools.partial(
        parallel.compile_ahead,
        *((train, state) if workload.train else (evaluate, state.params, state.batch_stats)),
        batch,
    )
    first, times = measured(step, workload.seconds, compile_step)
    loss, norm = _told(workload, first)
    memory = memory_in_use()
    device = jax.devices()[0]
    return Measurement(
        framework=f"jax {jax.__version__}",
        peak_bytes=memory.get("device_peak_bytes", memory["host_peak_bytes"]),
        loss=loss,
        gradient_norm=norm,
        gemm_flops=_gemm(workload.dtype, GEMM_SIDE.get(device.platform, GEMM_SIDE["gpu"])),
        device=device.device_kind,
        **times,
    )


def _told(workload: Workload, result: Any) -> tuple[float, float]:
    if workload.train:
        return float(result["loss"]), float(result["gradient_norm"])
    return float(result.loss) / workload.batch, 0.0


def _gemm(dtype: str, side: int) -> float:
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    return gemm_flops(lambda: jax.block_until_ready(product(matrix, matrix)), side)
