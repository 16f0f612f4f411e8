"""RGO's layers and consolidation for Flax NNX."""

from rgo_jax.nnx._consolidate import consolidate as consolidate
from rgo_jax.nnx._encoding import Encoding as Encoding
from rgo_jax.nnx._encoding import FeatureEncoding as FeatureEncoding
from rgo_jax.nnx._layers import Conv as Conv
from rgo_jax.nnx._layers import Linear as Linear
from rgo_jax.nnx._layers import Projection as Projection
from rgo_jax.nnx._layers import projected_by as projected_by
from rgo_jax.nnx._layers import projecting as projecting
