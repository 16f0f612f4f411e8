"""Methods of continual learning on a model of your own, to compare RGO with.

A method is made from ``apply_fn(params, x, task_id)`` and an optax optimizer; `train_sequence`
takes it through a list of tasks and measures the matrix R.
"""

from rgo_jax.baselines._ewc import ewc as ewc
from rgo_jax.baselines._ewc import ewc_textbook as ewc_textbook
from rgo_jax.baselines._finetune import finetune as finetune
from rgo_jax.baselines._gpm import GpmState as GpmState
from rgo_jax.baselines._gpm import gpm as gpm
from rgo_jax.baselines._gpm import gpm_update as gpm_update
from rgo_jax.baselines._gpm import scale_by_gpm as scale_by_gpm
from rgo_jax.baselines._gpm import sgp as sgp
from rgo_jax.baselines._method import Apply as Apply
from rgo_jax.baselines._method import Method as Method
from rgo_jax.baselines._method import Task as Task
from rgo_jax.baselines._owm import owm as owm
from rgo_jax.baselines._replay import a_gem as a_gem
from rgo_jax.baselines._replay import er_ring as er_ring
from rgo_jax.baselines._rgo import rgo as rgo
from rgo_jax.baselines._train import accuracy as accuracy
from rgo_jax.baselines._train import train_sequence as train_sequence
