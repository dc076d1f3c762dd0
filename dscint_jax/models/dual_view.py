"""DualView: both views of a study through one encoder, and spatial attention over all of it.

Pi et al., Med Image Anal 2020;65:101784, diagnose metastases from the anterior and the posterior
view jointly, in three parts that extract, aggregate and classify features; the aggregation is an
operator of spatial attention. That much is in the abstract, and the paper itself could not be read
in full, so everything else here is our choice:

- one encoder, with the same weights for both views, any of the registered networks;
- an embedding for each view, learned, added to its maps: seen from behind, a spine is another
  picture;
- gated attention (Ilse et al., ICML 2018, arXiv:1802.04712, eq. 9) scores each position, and one
  softmax over all positions of both views makes shares of the scores, so that a lesion which one
  view shows better takes weight from the other view;
- the maps' sum, weighted by their shares, is the study's features; one linear layer reads them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dscint_jax.models.attention import AttentionMaps
from dscint_jax.models.layers import Dropout, Logits, Network
from dscint_jax.models.options import OptionError, check_choice, check_dropout, check_size
from tfds_builder.commandline.errors import UserError

VIEWS = 2
Views = Float[Array, "batch view _height _width _channel"]
"""Both views of each study, the anterior first, or the maps that the encoder makes of them."""


class StudyAttention(nnx.Module):
    """Each position's share of a study, in float32; the gated layer has `hidden` units."""

    def __init__(self, features: int, *, hidden: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.content = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs)
        # Without a bias, which would raise all scores alike and leave the shares as they are.
        self.score = nnx.Linear(hidden, 1, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        maps: Float[Array, "batch view rows columns features"],
        present: Bool[Array, "batch view"],
    ) -> Float[Array, "batch view rows columns 1"]:
        """Returns shares that sum to 1 over a study; a view that is not present has none.

        Of a study without any view, as padding is, both views are taken as present.
        """
        scores = self.score(nnx.tanh(self.content(maps)) * nnx.sigmoid(self.gate(maps)))
        present = present | ~present.any(1, keepdims=True)
        scores = jnp.where(present[:, :, None, None, None], scores.astype(jnp.float32), -jnp.inf)
        return jax.nn.softmax(scores, axis=(1, 2, 3))


class DualView(Network):
    """The network; it reads studies.

    A view whose pixels are all zero is missing, as the records of `studies` have it: it has no
    share in the features. In training it does enter the encoder's batch statistics.

    Args:
      encoder: name of the registered network whose feature maps are weighed.
      encoder_options: the encoder's own options.
      attention_hidden: units of the attention's gated layer.
      dropout: rate before the last layer, in training only.

    Raises:
      UserError: the options do not fit, or the network named cannot be an encoder.
    """

    HEAD, RECORDS = "head", "studies"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        encoder: str = "resnet18",
        encoder_options: Mapping[str, Any] | None = None,
        attention_hidden: int = 128,
        dropout: float = 0.2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_size("attention_hidden", attention_hidden)
        check_dropout(dropout)
        options = {"in_channels": in_channels, "dtype": jnp.dtype(dtype).name}
        self.encoder = _build_encoder(encoder, encoder_options or {}, options, rngs)
        features = self.encoder.num_features
        self.view_embedding = nnx.Param(jnp.zeros((VIEWS, features)))
        self.attention = StudyAttention(features, hidden=attention_hidden, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.head = nnx.Linear(features, num_classes, dtype=dtype, rngs=rngs)

    @property
    def STEM(self) -> str:
        """Path of the encoder's first convolution."""
        return f"encoder.{self.encoder.STEM}"

    def feature_maps(self, images: Views) -> Views:
        """Returns the encoder's last maps of both views.

        Raises:
          UserError: the images are no pairs of views.
        """
        if images.ndim != 5 or images.shape[1] != VIEWS:
            raise UserError("dual_view reads studies; set --config.data.records=studies")
        maps = self.encoder.feature_maps(images.reshape(-1, *images.shape[2:]))
        return maps.reshape(images.shape[0], VIEWS, *maps.shape[1:])

    def classify(self, maps: Views, images: Views, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` tell which views a study has."""
        maps, shares = self._weigh(maps, images)
        features = (maps.astype(jnp.float32) * shares).sum((1, 2, 3))
        return self.head(self.dropout(features, rngs=rngs)).astype(jnp.float32)

    def attention_maps(self, images: Views) -> AttentionMaps:
        """Returns the share that each position of both views has in a study's features."""
        return AttentionMaps(spatial=self._weigh(self.feature_maps(images), images)[1])

    def _weigh(
        self, maps: Views, images: Views
    ) -> tuple[Views, Float[Array, "batch view rows columns 1"]]:
        """The maps, the views' embeddings added, and their shares."""
        maps = maps + self.view_embedding[...].astype(maps.dtype)[None, :, None, None]
        return maps, self.attention(maps, present=(images != 0).any((2, 3, 4)))


def _build_encoder(
    name: str, own: Mapping[str, Any], shared: Mapping[str, Any], rngs: nnx.Rngs
) -> Any:
    # Only here, because the registry imports this module.
    from dscint_jax.models import NETWORKS, build

    check_choice("encoder", name, sorted(n for n in NETWORKS if NETWORKS[n] is not DualView))
    for option in shared:
        if option in own:
            raise OptionError(
                f"encoder_options.{option}",
                f"is the network's own; set config.model_options.{option}",
            )
    return build(
        name,
        num_classes=0,
        rngs=rngs,
        options={**own, **shared},
        field="config.model_options.encoder_options",
    )
