"""Ways to train a language model on one kind of text after another."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.language import model
from benchmarks.language.base import (
    Method,
    Settings,
    State,
    chain,
    gradient_method,
    mean_loss,
)
from benchmarks.language.model import LanguageModel
from benchmarks.methods.ewc import Penalty, add_task, penalty_grads
from benchmarks.methods.gpm import empty, gpm_update

# So many batches stand for a task in GPM.
_GPM_BATCHES = 8


def adam(net: LanguageModel, settings: Settings, *, adapters: bool = False) -> Method:
    """Adam and nothing else."""
    return gradient_method(net, settings, chain(settings), adapters)


def rgo(
    net: LanguageModel,
    settings: Settings,
    *,
    columns: Any = "signs",
    normalize: bool = False,
    before_adam: bool = False,
    adapters: bool = False,
) -> Method:
    """RGO after Adam; or before it, which undoes it: Adam scales protected directions up again."""
    specs = None if adapters else model.projection_specs(net)
    projection = rgo_jax.scale_by_rgo(specs=specs, normalize=normalize)
    tx = chain(settings, projection, before_adam=before_adam)
    method = gradient_method(net, settings, tx, adapters)

    def end_task(state: State, batches: jax.Array) -> State:
        def output(trained: Any, tokens: jax.Array) -> jax.Array:
            params = method.params(state._replace(trained=trained))
            logits = net.apply({"params": params}, tokens[:, :-1])
            return rgo_jax.curvature_output(jnp.asarray(logits), tokens[:, 1:])

        folded = rgo_jax.consolidate(
            state.opt_state,
            output,
            batches,
            state.trained,
            alpha=settings.alpha,
            relative_alpha=True,
            columns=columns,
        )
        if adapters:
            # New adapters are zeros on one side. Of the other side nothing could be protected, and
            # of the zeros everything would be: there are no more directions than their rank.
            is_new = state.task == 0
            folded = jax.lax.cond(is_new, lambda: state.opt_state, lambda: folded)
        return state._replace(opt_state=folded)

    return method._replace(start_task=_keep_projections(tx), end_task=end_task)


def ewc(net: LanguageModel, settings: Settings) -> Method:
    """EWC with the empirical Fisher information of single windows.

    Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796
    """

    def penalized(grads: Any, state: State) -> Any:
        pull = penalty_grads(state.memory, state.trained, settings.ewc_strength / 2)
        return jax.tree.map(jnp.add, grads, pull)

    method = gradient_method(net, settings, chain(settings), change=penalized)

    def init(params: Any, key: jax.Array) -> State:
        nothing = Penalty(*(jax.tree.map(jnp.zeros_like, params) for _ in Penalty._fields))
        return method.init(params, key)._replace(memory=nothing)

    def end_task(state: State, batches: jax.Array) -> State:
        def squared_gradient(window: jax.Array) -> Any:
            grads = jax.grad(lambda p: mean_loss(net, p, window[None]))(state.trained)
            return jax.tree.map(jnp.square, grads)

        def add(total: Any, tokens: jax.Array) -> tuple[Any, None]:
            squares = jax.vmap(squared_gradient)(tokens)
            return jax.tree.map(lambda t, s: t + jnp.sum(s, axis=0), total, squares), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.trained), batches)
        fisher = jax.tree.map(lambda t: t / (batches.shape[0] * batches.shape[1]), total)
        return state._replace(memory=add_task(state.memory, state.trained, fisher))

    return method._replace(init=init, end_task=end_task)


def gpm(net: LanguageModel, settings: Settings) -> Method:
    """GPM: changes of kernels lie across what they received; all else is frozen.

    Saha et al. 2021, https://arxiv.org/abs/2103.09762
    """
    projection = rgo_jax.scale_by_rgo(specs=model.projection_specs(net), normalize=False)
    tx = chain(settings, projection)
    method = gradient_method(net, settings, tx)

    def init(params: Any, key: jax.Array) -> State:
        state = method.init(params, key)
        received = jax.eval_shape(
            lambda p: model.layer_inputs(net, p, jnp.zeros((1, net.length), int)), params
        )
        return state._replace(memory=empty({k: v.shape[-1] for k, v in received.items()}))

    def end_task(state: State, batches: jax.Array) -> State:
        tokens = batches[:_GPM_BATCHES].reshape(-1, batches.shape[-1])[:, :-1]
        inputs = model.layer_inputs(net, state.trained, tokens)
        memory = gpm_update(state.memory, inputs, settings.gpm_threshold)

        def projection(path: Any, old: jax.Array) -> jax.Array:
            bases = memory.bases.get(model.name_of(path))
            if bases is None:
                return jnp.zeros_like(old)
            return jnp.eye(len(bases)) - jnp.matmul(bases, bases.T, precision="highest")

        old = optax.tree.get(state.opt_state, "projection")
        new = jax.tree.map_with_path(projection, old)
        opt_state = optax.tree.set(state.opt_state, projection=new)
        return state._replace(opt_state=opt_state, memory=memory)

    return method._replace(init=init, start_task=_keep_projections(tx), end_task=end_task)


def o_lora(net: LanguageModel, settings: Settings, num_tasks: int) -> Method:
    """O-LoRA: new adapters for each task, at right angles to those of earlier ones.

    Wang et al. 2023, https://arxiv.org/abs/2310.14152
    """
    tx = chain(settings)

    def init(params: Any, key: jax.Array) -> State:
        adapters = jax.vmap(lambda key: model.init_adapters(params, settings.rank, key))(
            jax.random.split(key, num_tasks)
        )
        return State(params, adapters, tx.init(adapters), (), jnp.int32(0))

    def params_of(state: State) -> Any:
        # Side by side, the adapters are one of higher rank.
        joined = {
            name: {
                "down": jnp.concatenate(adapter["down"], axis=1),
                "up": jnp.concatenate(adapter["up"]),
            }
            for name, adapter in state.trained.items()
        }
        return model.add_adapters(state.base, joined)

    def step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        own = jnp.arange(num_tasks) == state.task - 1

        def loss_fn(adapters: Any) -> tuple[jax.Array, jax.Array]:
            loss = mean_loss(net, params_of(state._replace(trained=adapters)), tokens)
            earlier = jnp.arange(num_tasks) < state.task - 1
            overlap = jnp.float32(0)
            for adapter in adapters.values():
                mine = jnp.einsum("t,tdr->dr", own.astype(jnp.float32), adapter["down"])
                products = jnp.einsum("tdq,dr->tqr", adapter["down"], mine)
                overlap += jnp.sum(jnp.where(earlier[:, None, None], products, 0) ** 2)
            return loss + settings.olora_strength * overlap, loss

        grads, loss = jax.grad(loss_fn, has_aux=True)(state.trained)
        updates, opt_state = tx.update(grads, state.opt_state, state.trained)
        updates = jax.tree.map(lambda u: jnp.where(own[:, None, None], u, 0), updates)
        trained = optax.apply_updates(state.trained, updates)
        return state._replace(trained=trained, opt_state=opt_state), loss

    def start_task(state: State) -> State:
        return state._replace(opt_state=tx.init(state.trained), task=state.task + 1)

    return Method(init, start_task, step, lambda state, batches: state, params_of)


def _keep_projections(tx: optax.GradientTransformation) -> Callable[[State], State]:
    """The ``start_task`` of methods that project: Adam starts anew."""

    def start_task(state: State) -> State:
        opt_state = rgo_jax.next_task(tx, state.opt_state, state.trained)
        return state._replace(opt_state=opt_state, task=state.task + 1)

    return start_task
