"""Ways to train a language model on one kind of text after another.

Each is built from the model, settings and the pre-trained parameters. Task 0 is the text of
pre-training.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.language import model
from benchmarks.language.base import Settings, chain, logits_of, mean_loss
from benchmarks.language.model import LanguageModel
from rgo_jax import baselines
from rgo_jax.baselines import Apply, Method, Task

# So many windows stand for a task in GPM.
_GPM_WINDOWS = 128


def adam(net: LanguageModel, settings: Settings, base: Any, *, adapters: bool = False) -> Method:
    """Adam and nothing else."""
    if adapters:
        return _on_adapters(baselines.finetune(_adapted(net, base), chain(settings)), settings)
    return baselines.finetune(logits_of(net), chain(settings))


def rgo(
    net: LanguageModel,
    settings: Settings,
    base: Any,
    *,
    columns: Any = "signs",
    normalize: bool = False,
    before_adam: bool = False,
    adapters: bool = False,
) -> Method:
    """RGO after Adam; or before it, which undoes it: Adam scales protected directions up again."""
    specs = None if adapters else model.projection_specs(net)
    projection = rgo_jax.scale_by_rgo(specs=specs, normalize=normalize)
    method = baselines.rgo(
        _adapted(net, base) if adapters else logits_of(net),
        chain(settings, projection, before_adam=before_adam),
        alpha=settings.alpha,
        relative_alpha=True,
        columns=columns,
        fused=False,
    )
    if not adapters:
        return method

    def end_task(state: Any, task: Task) -> Any:
        # New adapters are zeros on one side. Of the other side nothing could be protected, and of
        # the zeros everything would be: there are no more directions than their rank.
        return jax.lax.cond(task.id == 0, lambda: state, lambda: method.end_task(state, task))

    return _on_adapters(method._replace(end_task=end_task), settings)


def ewc(net: LanguageModel, settings: Settings, base: Any) -> Method:
    """EWC with the empirical Fisher information of single windows."""
    del base
    return baselines.ewc_textbook(
        logits_of(net),
        chain(settings),
        # The library's Fisher information is of a window's log-likelihood, the sum of its bytes'.
        strength=settings.ewc_strength / net.length**2,
        empirical=True,
    )


def gpm(net: LanguageModel, settings: Settings, base: Any) -> Method:
    """GPM: changes of kernels lie across what they received; all else is frozen."""
    del base
    return baselines.gpm(
        logits_of(net),
        chain(settings),
        first_threshold=settings.gpm_threshold,
        threshold=settings.gpm_threshold,
        samples=_GPM_WINDOWS,
    )


def o_lora(net: LanguageModel, settings: Settings, base: Any, *, num_tasks: int) -> Method:
    """O-LoRA: new adapters for each task, at right angles to those of earlier ones.

    Wang et al. 2023, https://arxiv.org/abs/2310.14152
    """
    tx = chain(settings)

    def joined(adapters: Any, tokens: jax.Array, task_id: jax.Array) -> jax.Array:
        # Side by side, the adapters are one of higher rank.
        whole = {
            name: {
                "down": jnp.concatenate(adapter["down"], axis=1),
                "up": jnp.concatenate(adapter["up"]),
            }
            for name, adapter in adapters.items()
        }
        return _adapted(net, base)(whole, tokens, task_id)

    method = baselines.finetune(joined, tx)

    def init(params: Any, x: jax.Array, key: jax.Array) -> Any:
        adapters = jax.vmap(lambda key: model.init_adapters(params, settings.rank, key))(
            jax.random.split(key, num_tasks)
        )
        return method.init(adapters, x, key)

    def step(state: Any, batch: tuple[jax.Array, jax.Array], task: Task) -> tuple[Any, jax.Array]:
        tokens, targets = batch
        own = jnp.arange(num_tasks) == task.id - 1

        def loss_fn(adapters: Any) -> tuple[jax.Array, jax.Array]:
            loss = mean_loss(joined(adapters, tokens, task.id), targets)
            earlier = jnp.arange(num_tasks) < task.id - 1
            overlap = jnp.float32(0)
            for adapter in adapters.values():
                mine = jnp.einsum("t,tdr->dr", own.astype(jnp.float32), adapter["down"])
                products = jnp.einsum("tdq,dr->tqr", adapter["down"], mine)
                overlap += jnp.sum(jnp.where(earlier[:, None, None], products, 0) ** 2)
            return loss + settings.olora_strength * overlap, loss

        grads, loss = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: jnp.where(own[:, None, None], u, 0), updates)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state), loss

    return method._replace(init=init, step=step)


def _adapted(net: LanguageModel, base: Any) -> Apply:
    """A model whose parameters are adapters, on top of others that stay."""

    def apply_fn(adapters: Any, tokens: jax.Array, task_id: jax.Array) -> jax.Array:
        return logits_of(net)(model.add_adapters(base, adapters), tokens, task_id)

    return apply_fn


def _on_adapters(method: Method, settings: Settings) -> Method:
    """A method that is given the pre-trained parameters, and trains adapters for them."""

    def init(params: Any, x: jax.Array, key: jax.Array) -> Any:
        return method.init(model.init_adapters(params, settings.rank, key), x, key)

    return method._replace(init=init)
