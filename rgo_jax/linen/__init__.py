"""RGO's layers for Flax Linen."""

from rgo_jax.linen._encoding import FeatureEncoding as FeatureEncoding
from rgo_jax.linen._layers import Conv as Conv
from rgo_jax.linen._layers import Dense as Dense
