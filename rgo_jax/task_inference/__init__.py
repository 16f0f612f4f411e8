"""Without task ids: finds out which task examples are of, from the network's own outputs.

Under another task's encoding (FEL), or at another task's head, a network is less sure of its
outputs. So: the outputs under every task's id (`logits_by_task`), a score of how sure they are
(`scores`), and the task with the highest (`infer`). Nothing is stored and nothing is trained for
it. A network that has learned to be unsure under encodings that no task uses (`unused_task`,
`uniform_loss`) is right far more often.

Example:
  >>> import jax.numpy as jnp, rgo_jax
  >>> from rgo_jax import task_inference
  >>> def apply(params, x, task_id):
  ...     return rgo_jax.fel_encode(x, task_id) @ params
  >>> params, x = jnp.eye(4), jnp.ones((6, 4))
  >>> logits = task_inference.logits_by_task(apply, params, x, tasks=5)
  >>> print(task_inference.infer(task_inference.scores(logits), group_size=3))
  [0 0 0 0 0 0]
"""

from rgo_jax.task_inference._candidates import halve as halve
from rgo_jax.task_inference._candidates import logits_by_task as logits_by_task
from rgo_jax.task_inference._decision import NONE as NONE
from rgo_jax.task_inference._decision import Calibration as Calibration
from rgo_jax.task_inference._decision import calibrate as calibrate
from rgo_jax.task_inference._decision import group_scores as group_scores
from rgo_jax.task_inference._decision import infer as infer
from rgo_jax.task_inference._decision import mix as mix
from rgo_jax.task_inference._scores import SCORES as SCORES
from rgo_jax.task_inference._scores import scores as scores
from rgo_jax.task_inference._scores import uniform_loss as uniform_loss
from rgo_jax.task_inference._unused import unused_task as unused_task
