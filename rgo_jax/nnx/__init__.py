"""RGO's layers, gradients and steps between tasks for Flax NNX."""

from rgo_jax.nnx._consolidate import consolidate as consolidate
from rgo_jax.nnx._encoding import Encoding as Encoding
from rgo_jax.nnx._encoding import FeatureEncoding as FeatureEncoding
from rgo_jax.nnx._gradients import value_and_grad as value_and_grad
from rgo_jax.nnx._layers import Conv as Conv
from rgo_jax.nnx._layers import Linear as Linear
from rgo_jax.nnx._model import infer_specs as infer_specs
from rgo_jax.nnx._model import layer_inputs as layer_inputs
from rgo_jax.nnx._model import logits_by_task as logits_by_task
from rgo_jax.nnx._next_task import next_task as next_task
