"""The same predictions by onnxruntime, timed: what a program without JAX can expect on a CPU."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from dscint_jax.config import Config
from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.throughput.workload import GEMM_SIDE, Measurement, Workload, gemm_flops, measured
from dscint_jax.training.experiment import make_experiment
from tfds_builder.commandline.command import peak_memory
from tfds_builder.commandline.errors import UserError


def measure(workload: Workload, weights: Path) -> Measurement:
    """As `torch_step.measure`, of predictions.

    Raises:
      UserError: a package is missing, or the network cannot be written as ONNX.
    """
    # JAX writes the graph and computes nothing.
    jax.config.update("jax_platforms", "cpu")
    try:
        import onnxruntime

        from dscint_jax.export.onnx_graph import onnx_model
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; install it: pip install {error.name}") from error
    config = Config(steps=1, model=workload.network, model_options=workload.options)
    experiment = make_experiment(config, (1,) * workload.CLASSES)
    state, _ = experiment.imported_state(weights)
    network = nnx.merge(experiment.spec.inference, state.params, state.batch_stats)

    def probabilities(counts: jax.Array) -> jax.Array:
        scale = jax.numpy.full(counts.shape[:1], workload.SCALE)
        return jax.nn.softmax(network(normalise(counts, scale, clip=workload.CLIP)))

    model = onnx_model(probabilities, (*workload.size, 1), np.int32, {})
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    counts, labels = workload.counts(), workload.labels()

    def step() -> np.ndarray:
        return np.asarray(session.run(None, {"counts": counts})[0])

    found, times = measured(step, workload.seconds)
    side = GEMM_SIDE["cpu"]
    matrix = np.ones((side, side), np.float32)
    return Measurement(
        framework=f"onnxruntime {onnxruntime.__version__}",
        peak_bytes=float(peak_memory()),
        loss=float(-np.log(found[np.arange(len(labels)), labels]).mean()),
        gradient_norm=0.0,
        gemm_flops=gemm_flops(lambda: matrix @ matrix, side),
        device="cpu",
        **times,
    )
