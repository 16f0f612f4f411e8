"""Recursive Gradient Optimization (ICLR 2022) for optax: continual learning without replay."""

from rgo_jax._consolidate import consolidate as consolidate
from rgo_jax._curvature import curvature_output as curvature_output
from rgo_jax._fel import fel_encode as fel_encode
from rgo_jax._fel import fel_permutation as fel_permutation
from rgo_jax._geometry import ProjectionSpec as ProjectionSpec
from rgo_jax._gradients import value_and_grad as value_and_grad
from rgo_jax._infer import infer_specs as infer_specs
from rgo_jax._layer_inputs import layer_inputs as layer_inputs
from rgo_jax._metrics import average_accuracy as average_accuracy
from rgo_jax._metrics import backward_transfer as backward_transfer
from rgo_jax._metrics import forgetting as forgetting
from rgo_jax._metrics import forward_transfer as forward_transfer
from rgo_jax._metrics import intransigence as intransigence
from rgo_jax._metrics import learning_accuracy as learning_accuracy
from rgo_jax._next_task import next_task as next_task
from rgo_jax._projected import ProjectedGradient as ProjectedGradient
from rgo_jax._rls import rls_update as rls_update
from rgo_jax._sharding import projection_sharding as projection_sharding
from rgo_jax._state import RgoState as RgoState
from rgo_jax._stats import ProjectionStats as ProjectionStats
from rgo_jax._stats import projection_memory as projection_memory
from rgo_jax._stats import projection_stats as projection_stats
from rgo_jax._transform import rgo as rgo
from rgo_jax._transform import scale_by_rgo as scale_by_rgo
from rgo_jax._warnings import BatchNormWarning as BatchNormWarning
from rgo_jax._warnings import UnprotectedWarning as UnprotectedWarning

__version__ = "0.1.0"

__all__ = [
    "BatchNormWarning",
    "ProjectedGradient",
    "ProjectionSpec",
    "ProjectionStats",
    "RgoState",
    "UnprotectedWarning",
    "average_accuracy",
    "backward_transfer",
    "consolidate",
    "curvature_output",
    "fel_encode",
    "fel_permutation",
    "forgetting",
    "forward_transfer",
    "infer_specs",
    "intransigence",
    "layer_inputs",
    "learning_accuracy",
    "next_task",
    "projection_memory",
    "projection_sharding",
    "projection_stats",
    "rgo",
    "rls_update",
    "scale_by_rgo",
    "value_and_grad",
]
