"""The methods of `rgo_jax.baselines`, with the hyper-parameters that papers have by dataset."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import optax

from benchmarks.methods.base import Problem, on_problem
from rgo_jax import baselines

# Hyper-parameters by dataset, where they are not the library's defaults.
_ByDataset = Mapping[str, Mapping[str, Any]]

_EWC = {"cifar100": {"every": 50}, "mini-imagenet": {"every": 50}}
# The authors' of GPM for 20 tasks of CIFAR-100.
_GPM_IMAGES = {"first_threshold": 0.98, "threshold": 0.98, "growth": 0.001, "samples": 125}
GPM_BY_DATASET = {"cifar100": _GPM_IMAGES, "mini-imagenet": _GPM_IMAGES | {"samples": 100}}


def _on_problem(
    method: Callable[..., baselines.Method],
    problem: Problem,
    by_dataset: _ByDataset = MappingProxyType({}),
    **given: Any,
) -> baselines.Method:
    """A method with SGD at the problem's rate."""
    hyper = by_dataset.get(problem.dataset, {})
    optimizer = optax.sgd(problem.learning_rate)
    return on_problem(
        problem, method(problem.logits, optimizer, losses=problem.losses, **hyper, **given)
    )


def _replay(method: Callable[..., baselines.Method], problem: Problem) -> baselines.Method:
    return _on_problem(
        method,
        problem,
        num_tasks=problem.num_tasks,
        num_classes=problem.num_classes,
        freeze=problem.freeze,
    )


def _projecting(
    method: Callable[..., baselines.Method],
    problem: Problem,
    by_dataset: _ByDataset = MappingProxyType({}),
    **given: Any,
) -> baselines.Method:
    # What one task alone trains is not protected.
    return _on_problem(method, problem, by_dataset, mask=problem.protected, fused=True, **given)


ewc = partial(_on_problem, baselines.ewc, by_dataset=_EWC)
ewc_textbook = partial(_on_problem, baselines.ewc_textbook)
a_gem = partial(_replay, baselines.a_gem)
er_ring = partial(_replay, baselines.er_ring)
gpm = partial(_projecting, baselines.gpm, by_dataset=GPM_BY_DATASET)
sgp = partial(_projecting, baselines.sgp, by_dataset=GPM_BY_DATASET)
owm = partial(_projecting, baselines.owm)
owm_online = partial(_projecting, baselines.owm, online=True)
