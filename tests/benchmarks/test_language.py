"""Methods on a language model that learns one kind of text after another."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.__main__ import main
from benchmarks.language import command, methods, page, train
from benchmarks.language.base import Settings, mean_loss
from benchmarks.language.model import LanguageModel, add_adapters, name_of
from benchmarks.language.texts import Text
from rgo_jax.baselines import Task
from tests.marks import slow_but

NET = LanguageModel(length=8, width=16, heads=2, blocks=1)
SETTINGS = Settings(steps=30, rank=2, gpm_threshold=1.0, olora_strength=0.5)
PARAMS = NET.init(jax.random.key(1), jnp.zeros((1, 8), int))["params"]
TOKENS = jax.random.randint(jax.random.key(0), (12, 9), 0, 256)


def task_of(number):
    def load(indices):
        return TOKENS[indices, :-1], TOKENS[indices, 1:]

    return Task(jnp.int32(number), load, jnp.arange(12).reshape(3, 4))


def leaves(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def folded(method):
    """The state after the text of pre-training."""
    state = method.init(PARAMS, TOKENS[:1, :-1], jax.random.key(2))
    return method.end_task(state, task_of(0))


def trained(method, steps=3):
    """The states before and after a first task of a few steps."""
    task = task_of(1)
    before = method.start_task(folded(method), task, jax.random.key(3))

    def step(state, indices):
        return method.step(state, task.load(indices), task)

    batches = jnp.tile(task.batches[:1], (steps, 1))
    after, losses = jax.jit(partial(jax.lax.scan, step))(before, batches)
    assert np.all(np.isfinite(losses))
    return before, after


def loss_of(method, state):
    x, y = task_of(1).load(jnp.arange(4))
    return mean_loss(method.apply(state, x, jnp.int32(1)), y)


@pytest.mark.parametrize(
    "name", slow_but(["adam", "rgo", "ewc", "lora-adam", "lora-olora"], "adam")
)
def test_every_method_learns(name):
    method = command.METHODS[name].build(NET, SETTINGS, PARAMS)
    before, after = trained(method, SETTINGS.steps)
    assert loss_of(method, after) < loss_of(method, before) - 0.05


def test_gpm_keeps_what_kernels_do_to_earlier_inputs():
    method = methods.gpm(NET, Settings(steps=30, gpm_threshold=0.9), PARAMS)
    _, after = trained(method)
    old, new = leaves(PARAMS), leaves(after.params)
    moved = {name for name in old if jnp.any(old[name] != new[name])}
    assert moved == {name for name in old if name.endswith("kernel")}
    bases = after.memory.bases["block_0/up/kernel"]
    assert 0 < jnp.sum(jnp.any(bases != 0, axis=0)) < 16
    change = new["block_0/up/kernel"] - old["block_0/up/kernel"]
    np.testing.assert_allclose(bases.T @ change, 0, atol=1e-6)


def test_ewc_pulls_by_the_squared_gradients_of_single_windows():
    method = methods.ewc(NET, SETTINGS, PARAMS)
    penalty = folded(method).penalty
    x, y = task_of(0).load(jnp.arange(12))

    @jax.jit
    @jax.grad
    def gradient(params, x, y):
        return mean_loss(NET.apply({"params": params}, x[None]), y[None])

    squares = [
        np.square(leaves(gradient(PARAMS, *window))["head/kernel"], dtype=np.float64)
        for window in zip(x, y, strict=True)
    ]
    # What the strength is divided by; see benchmarks.language.methods.ewc.
    importance = leaves(penalty.importance)["head/kernel"] / 8**2
    np.testing.assert_allclose(importance, np.mean(squares, axis=0), rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(leaves(penalty.anchor)["head/kernel"], PARAMS["head"]["kernel"])


@pytest.mark.slow
def test_o_lora_trains_the_adapters_of_one_task_across_those_before():
    method = methods.o_lora(NET, SETTINGS, PARAMS, num_tasks=3)
    _, first = trained(method)
    task = task_of(2)
    second = method.start_task(first, task, jax.random.key(4))
    batch = task.load(task.batches[1])
    after, _ = method.step(second, batch, task)
    name = "block_0/up/kernel"
    old, new = first.params[name], after.params[name]
    for part in ("down", "up"):
        assert jnp.any(old[part][1] != new[part][1])
        np.testing.assert_array_equal(old[part][jnp.array([0, 2])], new[part][jnp.array([0, 2])])
    summed = sum(
        np.asarray(new["down"][t], np.float64) @ np.asarray(new["up"][t], np.float64)
        for t in range(3)
    )
    merged = add_adapters(
        PARAMS, {name: {"down": np.eye(16, dtype=np.float32), "up": summed.astype(np.float32)}}
    )
    only = {k: v if k == name else jax.tree.map(jnp.zeros_like, v) for k, v in after.params.items()}
    x = batch[0]
    np.testing.assert_allclose(
        method.apply(after._replace(params=only), x, jnp.int32(2)),
        NET.apply({"params": merged}, x),
        atol=1e-4,
    )

    def overlap(state):
        down = state.params[name]["down"]
        return float(jnp.sum((down[0].T @ down[1]) ** 2))

    step, state = jax.jit(lambda state: method.step(state, batch, task)[0]), second
    for _ in range(30):
        state = step(state)
    assert overlap(state) < 0.8 * overlap(second)


@pytest.mark.slow
def test_new_adapters_are_not_folded_in():
    method = methods.rgo(NET, SETTINGS, PARAMS, adapters=True)
    before, after = trained(method)
    x = TOKENS[:2, :-1]
    expected = NET.apply({"params": PARAMS}, x)  # They change nothing yet.
    np.testing.assert_allclose(method.apply(before, x, jnp.int32(0)), expected, atol=1e-5)
    identity = leaves(optax.tree.get(before.opt_state, "projection"))
    later = leaves(optax.tree.get(method.end_task(after, task_of(1)).opt_state, "projection"))
    for name, projection in identity.items():
        np.testing.assert_array_equal(projection, np.eye(len(projection)))
        assert jnp.any(later[name] != projection)


def test_next_tasks_begin_with_a_fresh_optimizer_and_the_same_projections():
    method = methods.rgo(NET, SETTINGS, PARAMS)
    _, after = trained(method)
    state = method.start_task(after, task_of(2), jax.random.key(4))
    assert not any(jnp.any(m) for m in jax.tree.leaves(optax.tree.get(state.opt_state, "mu")))
    old, new = (optax.tree.get(s.opt_state, "projection") for s in (after, state))
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_replay_is_half_of_earlier_texts():
    texts = [Text(np.full((40, 9), kind), np.zeros((4, 9), int)) for kind in range(3)]
    mixed = train._with_earlier(texts, seed=0)
    assert mixed.shape == (40, 9)
    assert np.bincount(mixed[:, 0]).tolist() == [10, 10, 20]


def test_forgetting_and_what_was_just_learned():
    losses = np.array([[[1.0, 5.0, 6.0], [2.0, 1.5, 5.0], [3.0, 2.5, 0.5]]])
    assert page.final(losses).tolist() == [2.0]
    assert page.forgetting(losses).tolist() == [1.5]  # (3 - 1 + 2.5 - 1.5) / 2
    assert page.plasticity(losses).tolist() == [1.0]


def few(*more):
    return ["language", "--seeds", "1", "--steps", "2", "--pre-training-steps", "2", *more]


@pytest.mark.slow
def test_the_command_writes_a_table_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        command, "LanguageModel", partial(LanguageModel, width=16, heads=2, blocks=1)
    )
    assert main(few("--methods", "adam", "--out", str(tmp_path))) == 0
    first = json.loads((tmp_path / "language.json").read_text())
    text = (tmp_path / "LANGUAGE.md").read_text()
    assert "| Adam | " in text
    assert "| EWC | not yet run |" in text
    losses = np.array(first["methods"]["adam"]["losses"])
    assert losses.shape == (1, 4, 4)
    assert np.all((losses > 1) & (losses < 10))
    assert main(few("--methods", "adam,replay", "--resume", "--out", str(tmp_path))) == 0
    both = json.loads((tmp_path / "language.json").read_text())
    assert both["methods"]["adam"] == first["methods"]["adam"]
    # Before the first task nothing has been trained but the model that they share.
    assert both["methods"]["replay"]["losses"][0][0] == first["methods"]["adam"]["losses"][0][0]
    capsys.readouterr()
    assert main(few("--steps", "3", "--resume", "--out", str(tmp_path))) == 2
    assert "of another experiment" in capsys.readouterr().err
    assert json.loads((tmp_path / "language.json").read_text()) == both


def test_what_cannot_be_run_is_refused(tmp_path, capsys):
    for wrong, told in (
        (["--methods", "magic"], "--methods is 'magic'; expected one of adam, adam-slow"),
        (["--steps", "0"], "--steps is 0; expected an integer"),
    ):
        assert main([*few("--out", str(tmp_path)), *wrong]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "language.json").write_text("{}")
    assert main([*few("--out", str(tmp_path)), "--resume"]) == 2
    assert "not a result of this command" in capsys.readouterr().err
