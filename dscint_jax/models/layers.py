"""Building blocks that networks share: convolutions, normalisation, rows of layers.

Every block computes in its `dtype` and keeps parameters and running statistics in float32; its
weights are drawn from the `params` stream of its `rngs`.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dscint_jax.models.convolution import Maps, PaddingRule, convolve, is_on_one_cpu
from dscint_jax.models.pooling import adaptive_average_pool
from tfds_builder.commandline.errors import UserError

he_normal = nnx.initializers.he_normal()
he_normal_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015, eq. 14: keeps the spread of gradients through convolution and ReLU."""

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""What ReLU takes from the spread of normal values, given back (Brock et al. 2021, eq. 2)."""

Layer = Callable[[jax.Array], jax.Array]
Logits = Float[Array, "batch classes"]
Part = TypeVar("Part")


def built(part: Part | None) -> Part:
    """A part of a network that may have been left out, as an encoder's head.

    Raises:
      TypeError: it was.
    """
    if part is None:
        raise TypeError("a part is called that the network was built without, as encoders are")
    return part


BLOCKS = 16
"""Parts in which a wide layer's gradient by its input is computed."""


class WideLinear(nnx.Linear):
    """A linear layer of many weights, with the gradient by its input in the form fast on a CPU.

    XLA turns the weights around for it, which takes ten times as long as the product. Block by
    block of them it multiplies the weights as they lie (`python -m tests.benchmarks.wide_layers`).
    """

    def __init__(self, in_features: int, out_features: int, **options: Any):
        super().__init__(in_features, out_features, dot_general=_wide_product, **options)


def _wide_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """The signature of `jax.lax.dot_general`, of rows by a matrix."""
    if is_on_one_cpu():
        return _product(x, kernel)
    return jax.lax.dot_general(x, kernel, dimensions, **options)


@jax.custom_vjp
def _product(
    x: Float[Array, "batch in"], kernel: Float[Array, "in out"]
) -> Float[Array, "batch out"]:
    return x @ kernel


def _product_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    blocks = math.gcd(len(kernel), BLOCKS)
    turned = gradient.T
    parts = jax.lax.map(lambda rows: rows @ turned, kernel.reshape(blocks, -1, kernel.shape[1]))
    return parts.reshape(len(kernel), -1).T, x.T @ gradient


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


class Conv(nnx.Module):
    """A convolution.

    Args:
      in_features, out_features: channels.
      kernel: side of the kernel in pixels, or its rows and columns.
      stride: step in pixels, the same in both directions.
      padding: 'SAME', or pixels on each side, as for `convolution.pads_of`.
      use_bias: whether a bias is added.
      kernel_init: of the kernel (rows, columns, in, out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: PaddingRule = 0,
        use_bias: bool = False,
        kernel_init: nnx.Initializer = he_normal_out,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        rows_columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        shape = (*rows_columns, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.stride = stride
        self.padding: PaddingRule = padding
        self.dtype = dtype

    def __call__(self, x: Maps) -> Maps:
        """Returns the features, smaller by the stride and by what the padding leaves out."""
        kernel = self._used_kernel()
        if x.shape[-1] != kernel.shape[2]:
            raise UserError(
                f"the network takes images of {kernel.shape[2]} channel(s) and got {x.shape[-1]}; "
                f"see config.model_options.in_channels"
            )
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return x if self.bias is None else x + self.bias[None, None, None].astype(self.dtype)

    def _used_kernel(self) -> Float[Array, "rows columns in out"]:
        return self.kernel[...]


class StandardisedConv(Conv):
    """A convolution whose kernel is standardised before use, with a gain for each output.

    Scaled weight standardisation (Qiao et al. 2019; Brock et al. 2021): each output's kernel has
    mean 0 and variance 2 / (1 - 1 / pi) / fan-in, which keeps the variance of what passes through
    convolution and ReLU. It lets a network with few normalisation layers train as fast as one that
    is normalised throughout, and knows nothing of the batch.

    Arguments are those of `Conv`.
    """

    def __init__(self, in_features: int, out_features: int, kernel: int, **options: Any):
        super().__init__(in_features, out_features, kernel, **options)
        self.gain = nnx.Param(jnp.ones(out_features))

    def _used_kernel(self) -> Float[Array, "rows columns in out"]:
        kernel = self.kernel[...]
        fan_in = kernel[..., 0].size
        mean = kernel.mean((0, 1, 2), keepdims=True)
        # The small number keeps a kernel of equal values finite.
        deviation = jnp.sqrt(kernel.var((0, 1, 2), keepdims=True) * fan_in + 1e-4)
        return (kernel - mean) / deviation * self.gain[...][None, None, None] * RELU_GAIN


class BatchNorm(nnx.BatchNorm):
    """BatchNorm as PyTorch has it, computed in float32 whatever the type of the features.

    A step moves the running statistics by a tenth of the way to the batch's mean and to its
    unbiased variance, n / (n - 1) of the one that the batch itself is divided by. (Flax's moves by
    a hundredth, which takes longer to settle than short runs last, and to the plain variance.)
    Under an axis name (`axis_name`, set for training on many devices) the batch is that of all.
    The variance is the mean of squares less the squared mean, in one pass over the features: good
    where a channel's mean is not hundreds of times its spread.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=epsilon, dtype=dtype, rngs=rngs)

    # By what it normalises is the module's mode alone, and no caller has a mask.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Returns the normalised features; in training by the batch, else by the statistics."""
        # One row a position: over rows XLA sums several times as fast as over the axes of a map.
        rows = x.reshape(-1, x.shape[-1])
        scale, bias = built(self.scale)[...], built(self.bias)[...]
        if self.use_running_average:
            factor = jax.lax.rsqrt(self.var[...] + self.epsilon) * scale
            y = (rows.astype(jnp.float32) - self.mean[...][None]) * factor[None] + bias[None]
        else:
            found: tuple[jax.Array, jax.Array, jax.Array]
            found = _normalise(self.epsilon, self.axis_name, rows, scale, bias)
            y, mean, variance = found
            count = len(rows) * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
            unbiased = variance * (count / max(count - 1, 1))
            for statistic, value in ((self.mean, mean), (self.var, unbiased)):
                # Not `statistic[...] = `, which under a trace searches the whole program so far.
                statistic.set_value(self.momentum * statistic[...] + (1 - self.momentum) * value)
        return y.astype(self.dtype).reshape(x.shape)


Rows = Float[Array, "position channel"]
Channels = Float[Array, " channel"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalise(
    epsilon: float, axis: str | None, x: Rows, scale: Channels, bias: Channels
) -> tuple[Rows, Channels, Channels]:
    """Rows normalised over all positions, of all devices of `axis`; their mean and variance.

    In float32. Its gradient is the usual one (Ioffe and Szegedy 2015), from two sums over the rows;
    none passes through mean and variance as results, which statistics are made of.
    """
    return _normalise_forward(epsilon, axis, x, scale, bias)[0]


def _normalise_forward(
    epsilon: float, axis: str | None, x: Rows, scale: Channels, bias: Channels
) -> tuple[tuple[Rows, Channels, Channels], tuple]:
    values = x.astype(jnp.float32)
    mean, square = _mean_over(axis, values.mean(0), jnp.square(values).mean(0))
    # Rounding may take it below zero.
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (values - mean[None]) * (inverse * scale)[None] + bias[None]
    return (y, mean, variance), (x, mean, inverse, scale)


def _normalise_backward(
    epsilon: float, axis: str | None, saved: tuple, gradients: tuple
) -> tuple[Rows, Channels, Channels]:
    x, mean, inverse, scale = saved
    gradient = gradients[0]
    normalised = (x.astype(jnp.float32) - mean[None]) * inverse[None]
    to_bias, to_scale = gradient.sum(0), (gradient * normalised).sum(0)
    mean_of, mean_with = _mean_over(axis, to_bias / len(x), to_scale / len(x))
    to_x = (gradient - mean_of[None] - normalised * mean_with[None]) * (inverse * scale)[None]
    return to_x.astype(x.dtype), to_scale, to_bias


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _mean_over(axis: str | None, *values: Channels) -> Float[Array, "_value channel"]:
    """The means over all devices, as one array, which is one message."""
    stacked = jnp.stack(values)
    return jax.lax.pmean(stacked, axis) if axis else stacked


DROPOUT_BY_EXAMPLE = "dropout_by_example"
"""The stream of keys that are the same on every device."""


class Dropout(nnx.Dropout):
    """Dropout that draws for every example of the batch from a key of its own.

    So an example loses the same features however the batch is divided over devices. Under an axis
    name (`axis_name`, set for training on many devices) the key is `rngs.dropout_by_example()`,
    which all devices share, elsewhere `rngs.dropout()`.
    """

    def __init__(self, rate: float):
        super().__init__(rate)
        self.axis_name: str | None = None

    # Whether it draws is the module's mode alone.
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, " batch *shape"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, " batch *shape"]:
        """Returns the features, in training without some of them and the others scaled up."""
        if self.deterministic or not self.rate:
            return x
        if rngs is None:
            raise TypeError("in training a network with dropout is called with `rngs`")
        first, stream = 0, "dropout"
        if self.axis_name:
            first = jax.lax.axis_index(self.axis_name) * len(x)
            stream = DROPOUT_BY_EXAMPLE
        key = rngs[stream]()
        keep = 1.0 - self.rate

        def drawn(example: jax.Array) -> jax.Array:
            return jax.random.bernoulli(jax.random.fold_in(key, example), keep, x.shape[1:])

        return jnp.where(jax.vmap(drawn)(first + jnp.arange(len(x))), x / keep, 0)


def group_norm(
    features: int, *, groups: int | None = None, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.GroupNorm:
    """GroupNorm (Wu and He 2018), by default in the most groups that have 16 channels or more."""
    if groups is None:
        most = max(features // 16, 1)
        groups = next(n for n in range(most, 0, -1) if features % n == 0)
    return nnx.GroupNorm(features, num_groups=groups, dtype=dtype, rngs=rngs)


NORMS: dict[str, Callable[..., nnx.Module]] = {
    "batch": BatchNorm,
    "group": group_norm,
    "layer": lambda features, **kwargs: group_norm(features, groups=1, **kwargs),
    "instance": lambda features, **kwargs: group_norm(features, groups=features, **kwargs),
}
"""Normalisations by name. 'layer' is over all positions and channels of an image, 'instance' over
the positions of each channel; only 'batch' looks at other images."""


class ConvBlock(nnx.Module):
    """Square convolution ('SAME' padding, kernel by He et al. 2015), normalisation, ReLU.

    Arguments are those of `Conv`, but for two.

    Args:
      standardised: whether the kernel is standardised (`StandardisedConv`) or plain.
      norm: which of NORMS stands between convolution and ReLU; the bias is then its own. None for
        no normalisation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel: int,
        stride: int,
        standardised: bool,
        norm: str | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = (StandardisedConv if standardised else Conv)(
            in_features,
            out_features,
            kernel,
            stride=stride,
            padding="SAME",
            use_bias=norm is None,
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = NORMS[norm](out_features, dtype=dtype, rngs=rngs) if norm else None

    def __call__(self, x: Maps) -> Maps:
        """Returns the block's features, smaller by the stride."""
        x = self.conv(x)
        return nnx.relu(x if self.norm is None else self.norm(x))


def apply_layers(
    layers: Iterable[nnx.Module | Layer], x: jax.Array, *, rngs: nnx.Rngs | None = None
) -> jax.Array:
    """Passes `x` through layers in order; `rngs` (the `dropout` stream) goes to every Dropout."""
    for layer in layers:
        x = layer(x, rngs=rngs) if isinstance(layer, nnx.Dropout) else layer(x)
    return x


def flatten(
    x: Float[Array, "batch height width channel"],
) -> Float[Array, "batch channel_height_width"]:
    """One row an image, channel by channel: the order in which reference weights expect it."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


class Network(nnx.Module):
    """The call of the networks here, in two parts, between which Grad-CAM looks."""

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns float32 logits of normalised images; `rngs`: `dropout`, in training only."""
        return self.classify(self.feature_maps(images), images, rngs=rngs)

    def feature_maps(self, images: jax.Array) -> jax.Array:
        """Returns the last maps."""
        raise NotImplementedError

    def classify(
        self, maps: jax.Array, images: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> Logits:
        """Returns the logits of the last maps."""
        raise NotImplementedError


class GridNetwork(Network):
    """`features`, a row of layers, whose maps are averaged to a grid for the row `classifier`.

    Attributes:
      GRID: rows and columns of the grid, whatever the size of the image.
    """

    GRID: tuple[int, int]
    features: nnx.List
    classifier: nnx.List | None

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last maps, about a 32nd of the image's height and width."""
        return apply_layers(self.features, images)

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        x = flatten(adaptive_average_pool(maps, self.GRID))
        return apply_layers(built(self.classifier), x, rngs=rngs).astype(jnp.float32)
