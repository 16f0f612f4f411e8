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
from tests.marks import slow_but

NET = LanguageModel(length=8, width=16, heads=2, blocks=1)
SETTINGS = Settings(steps=30, rank=2, gpm_threshold=1.0, olora_strength=0.5)
PARAMS = NET.init(jax.random.key(1), jnp.zeros((1, 8), int))["params"]
TOKENS = jax.random.randint(jax.random.key(0), (3, 4, 9), 0, 256)  # 3 batches of 4


def leaves(tree):
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def trained(method, steps=3):
    """The state after the text of pre-training, a task of a few steps, and its end."""
    state = method.end_task(method.init(PARAMS, jax.random.key(2)), TOKENS)
    before = method.start_task(state)

    def step(state, tokens):
        return method.step(state, tokens)

    after, losses = jax.jit(partial(jax.lax.scan, step))(
        before, jnp.tile(TOKENS[:1], (steps, 1, 1))
    )
    assert np.all(np.isfinite(losses))
    return before, after


@pytest.mark.parametrize(
    "name", slow_but(["adam", "rgo", "ewc", "lora-adam", "lora-olora"], "adam")
)
def test_every_method_learns(name):
    method = command.METHODS[name].build(NET, SETTINGS)
    before, after = trained(method, SETTINGS.steps)
    old, new = (mean_loss(NET, method.params(s), TOKENS[0]) for s in (before, after))
    assert new < old - 0.05


def test_gpm_keeps_what_kernels_do_to_earlier_inputs():
    settings = Settings(steps=30, gpm_threshold=0.9)
    method = methods.gpm(NET, settings)
    _, after = trained(method)
    old, new = leaves(PARAMS), leaves(method.params(after))
    moved = {name for name in old if jnp.any(old[name] != new[name])}
    assert moved == {name for name in old if name.endswith("kernel")}
    bases = after.memory.bases["block_0/up/kernel"]
    assert 0 < jnp.sum(jnp.any(bases != 0, axis=0)) < 16
    change = new["block_0/up/kernel"] - old["block_0/up/kernel"]
    np.testing.assert_allclose(bases.T @ change, 0, atol=1e-6)


def test_ewc_pulls_by_the_squared_gradients_of_single_windows():
    method = methods.ewc(NET, SETTINGS)
    state = method.end_task(method.init(PARAMS, jax.random.key(2)), TOKENS)
    gradient = jax.jit(jax.grad(lambda p, window: mean_loss(NET, p, window[None])))
    squares = [
        np.square(leaves(gradient(PARAMS, window))["head/kernel"], dtype=np.float64)
        for window in TOKENS.reshape(12, 9)
    ]
    importance = leaves(state.memory.importance)["head/kernel"]
    np.testing.assert_allclose(importance, np.mean(squares, axis=0), rtol=1e-3, atol=1e-9)
    np.testing.assert_array_equal(
        leaves(state.memory.anchor)["head/kernel"], PARAMS["head"]["kernel"]
    )


@pytest.mark.slow
def test_o_lora_trains_the_adapters_of_one_task_across_those_before():
    method = methods.o_lora(NET, SETTINGS, num_tasks=3)
    _, first = trained(method)
    second = method.start_task(first)
    after, _ = method.step(second, TOKENS[1])
    name = "block_0/up/kernel"
    old, new = first.trained[name], after.trained[name]
    for part in ("down", "up"):
        assert jnp.any(old[part][1] != new[part][1])
        np.testing.assert_array_equal(old[part][jnp.array([0, 2])], new[part][jnp.array([0, 2])])
    summed = sum(
        np.asarray(new["down"][t], np.float64) @ np.asarray(new["up"][t], np.float64)
        for t in range(3)
    )
    found = method.params(after)["block_0"]["up"]["kernel"]
    np.testing.assert_allclose(found, PARAMS["block_0"]["up"]["kernel"] + summed, atol=1e-5)

    def overlap(state):
        down = state.trained[name]["down"]
        return float(jnp.sum((down[0].T @ down[1]) ** 2))

    state = second
    for _ in range(30):
        state, _ = jax.jit(method.step)(state, TOKENS[1])
    assert overlap(state) < 0.8 * overlap(second)


@pytest.mark.slow
def test_adapters_leave_the_base_as_it_is():
    method = methods.rgo(NET, SETTINGS, adapters=True)
    _, after = trained(method)
    jax.tree.map(np.testing.assert_array_equal, after.base, PARAMS)
    expected = add_adapters(PARAMS, after.trained)
    jax.tree.map(np.testing.assert_array_equal, method.params(after), expected)


def test_next_tasks_begin_with_a_fresh_optimizer_and_the_same_projections():
    method = methods.rgo(NET, SETTINGS)
    _, after = trained(method)
    state = method.start_task(after)
    assert int(state.task) == 2
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
