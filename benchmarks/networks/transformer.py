"""A small vision transformer.

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. The mean over patches is classified, not
a token of its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.networks.initializers import INITIAL_VALUES
from benchmarks.networks.layers import dense
from benchmarks.networks.network import Network, check_images
from rgo_jax.linen import Conv


class VisionTransformer(Network, kw_only=True):
    """Patches, then blocks with layer normalisation before attention and before two dense layers.

    FEL comes after each layer normalisation and before the second dense layer of a block. What goes
    around the blocks is not permuted, so patches keep their meaning from layer to layer.

    Attributes:
      patch: height and width of patches.
      blocks: how many.
      width: of the features.
      heads: of attention.
    """

    patch: int
    blocks: int
    width: int
    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, task_id: jax.Array, encoding_id: jax.Array | None = None
    ) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x [b, height, width, channels]``.

        Raises:
          ValueError: no images, or smaller than a patch.
        """
        check_images(x, self.patch)
        encode = self.encoder(task_id if encoding_id is None else encoding_id)
        init = INITIAL_VALUES[self.initial_values]
        x = Conv(
            self.width,
            (self.patch,) * 2,
            self.patch,
            padding="VALID",
            use_bias=self.conv_biases,
            kernel_init=init.conv,
            bias_init=init.bias,
        )(encode(x))
        x = x.reshape(len(x), -1, self.width)
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x += positions[None]
        for _ in range(self.blocks):
            attention = nn.MultiHeadDotProductAttention(
                self.heads,
                use_bias=self.biases != "input",
                kernel_init=init.dense,
                bias_init=init.bias,
            )
            x += attention(encode(nn.LayerNorm()(x)))
            inner = dense(
                encode(nn.LayerNorm()(x)), 4 * self.width, self.initial_values, self.biases
            )
            x += dense(encode(nn.gelu(inner)), self.width, self.initial_values, self.biases)
        return self.classify(jnp.mean(nn.LayerNorm()(x), axis=1), encode, task_id)
