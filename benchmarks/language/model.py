"""A small transformer over bytes, in plain Flax, and low-rank adapters for it."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import rgo_jax

# Of bytes.
VOCABULARY = 256


class Block(nn.Module):
    """Attention and a feed-forward part, each after a layer normalisation."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """From features ``[b, length, width]`` to others; ``mask`` tells what is attended to."""
        width = x.shape[-1]
        inputs = nn.LayerNorm(name="attention_norm")(x)
        x += nn.MultiHeadDotProductAttention(self.heads, name="attention")(inputs, mask=mask)
        inner = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="mlp_norm")(x)))
        return jnp.asarray(x + nn.Dense(width, name="down")(inner))


class LanguageModel(nn.Module):
    """Predicts each byte from those before it.

    Attributes:
      length: the longest text.
      width: of the features.
      heads: of attention.
      blocks: how many.
    """

    length: int
    width: int = 96
    heads: int = 4
    blocks: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits ``[b, length, 256]`` of the bytes after ``tokens``, integers ``[b, length]``."""
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        x = nn.Embed(VOCABULARY, self.width, name="embedding")(tokens) + positions[None]
        mask = nn.make_causal_mask(tokens)
        for number in range(self.blocks):
            x = Block(self.heads, name=f"block_{number}")(x, mask)
        return jnp.asarray(nn.Dense(VOCABULARY, name="head")(nn.LayerNorm(name="norm")(x)))


def projection_specs(net: LanguageModel) -> Any:
    """How RGO sees the parameters; see `rgo_jax.ProjectionSpec`."""
    tokens = jnp.zeros((1, net.length), int)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)["params"]
    return rgo_jax.infer_specs(lambda p, t: net.apply({"params": p}, t), shapes, tokens)


def init_adapters(params: Any, rank: int, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Low-rank adapters that change nothing yet, for the kernels inside the blocks.

    Hu et al. 2022, https://arxiv.org/abs/2106.09685

    Args:
      params: of a `LanguageModel`.
      rank: of the change.
      key: of the initial values.

    Returns:
      By the kernel's path ``down [d, rank]`` at random and ``up [rank, m]``, zeros.
    """
    adapters = {}
    for number, (path, kernel) in enumerate(_kernels(params).items()):
        d, m = _matrix_shape(path, kernel)
        values = jax.random.normal(jax.random.fold_in(key, number), (d, rank)) / d**0.5
        adapters[path] = {"down": values, "up": jnp.zeros((rank, m))}
    return adapters


def add_adapters(params: Any, adapters: dict[str, dict[str, jax.Array]]) -> Any:
    """The parameters with ``down up`` added to each kernel that has an adapter."""

    def add(path: Any, leaf: jax.Array) -> jax.Array:
        adapter = adapters.get(name_of(path))
        if adapter is None:
            return leaf
        return leaf + (adapter["down"] @ adapter["up"]).reshape(leaf.shape)

    return jax.tree.map_with_path(add, params)


def _kernels(params: Any) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    named = {name_of(path): leaf for path, leaf in leaves}
    return {
        name: leaf
        for name, leaf in named.items()
        if name.startswith("block_") and name.endswith("/kernel")
    }


def _matrix_shape(name: str, kernel: jax.Array) -> tuple[int, int]:
    """Fan-in and fan-out; query, key and value kernels are ``[width, heads, head_width]``."""
    fan_in = 1 if name.split("/")[-2] in ("query", "key", "value") else kernel.ndim - 1
    d = math.prod(kernel.shape[:fan_in])
    return d, kernel.size // d


def name_of(path: Any) -> str:
    """A path as people write it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
