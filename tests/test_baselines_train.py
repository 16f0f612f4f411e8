"""`train_sequence`: what it measures, what it compiles, and that it goes on after a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from rgo_jax import baselines
from tests.marks import slow_but
from tests.small_models import RATE, SGD, cross_entropy_grad, linear

PARAMS = {"w": jnp.zeros((4, 3))}


def made_tasks(count, sizes=(40, 25), seed=0):
    """Of three classes, told apart by other features in each task."""
    rng = np.random.default_rng(seed)
    tasks = []
    for _ in range(count):
        order, found = rng.permutation(4), []
        for size in sizes:
            x = rng.normal(size=(size, 4))
            found += [x, np.argmax(x[:, order[:3]], axis=1)]
        tasks.append(tuple(found))
    return tasks


def test_what_is_measured_is_the_accuracy_of_the_parameters_at_that_time():
    """One batch an epoch: the order does not matter, and each step is known."""
    tasks = made_tasks(3)
    method = baselines.finetune(linear, SGD)
    r, state = baselines.train_sequence(
        method, PARAMS, tasks, batch_size=40, epochs=3, test_batch_size=7
    )
    w, expected = np.zeros((4, 3)), np.full((3, 3), np.nan)
    for t, (x, y, _, _) in enumerate(tasks):
        for _ in range(3):
            w = w - RATE * cross_entropy_grad(w, x, y)
        for k, (_, _, x_test, y_test) in enumerate(tasks[: t + 1]):
            expected[t, k] = np.mean(np.argmax(x_test @ w, axis=1) == y_test)
    assert r.dtype == np.float64
    np.testing.assert_allclose(r, expected, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-4, atol=1e-6)
    assert float(rgo_jax.average_accuracy(r)) == pytest.approx(expected[-1].mean())


def test_a_metric_of_ones_own_is_averaged_over_examples_and_further_axes():
    """Regression of two outputs; nothing is trained, with a rate of 0."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    method = baselines.finetune(linear, optax.sgd(0.0), losses=optax.squared_error)
    r, _ = baselines.train_sequence(
        method,
        {"w": jnp.ones((4, 3))},
        [(x, y, x[:11], y[:11])],
        batch_size=10,
        metric=lambda outputs, y: jnp.abs(outputs - y),
        test_batch_size=4,
    )
    expected = np.abs(x[:11] @ np.ones((4, 3)) - y[:11]).mean()
    np.testing.assert_allclose(r, [[expected]], rtol=1e-5)


def test_each_epoch_is_shuffled_anew_and_sees_each_example_once():
    """A method of one's own, which writes down what it is shown."""

    def step(state, batch, task):
        x, _ = batch
        seen, count = state
        return (seen.at[count].set(x[:, 0]), count + 1), 0.0

    method = baselines.Method(
        init=lambda params, x, key: (jnp.zeros((6, 4)), 0),
        start_task=lambda state, task, key: state,
        step=step,
        end_task=lambda state, task: state,
        apply=lambda state, x, task_id: x,
        memory=lambda state: (),
    )
    x, y = np.arange(12.0)[:, None], np.zeros(12, int)
    _, (seen, _) = baselines.train_sequence(method, (), [(x, y, x, y)], batch_size=4, epochs=2)
    first, second = np.asarray(seen).reshape(2, 12).tolist()
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != sorted(first)


def test_a_model_that_has_diverged_has_no_accuracy():
    method = baselines.finetune(linear, optax.sgd(jnp.inf))
    r, _ = baselines.train_sequence(method, PARAMS, made_tasks(1), batch_size=10)
    assert np.isnan(r).all()


@pytest.mark.parametrize(
    "name", slow_but(["finetune", "ewc", "ewc_textbook", "er_ring", "gpm"], "finetune", "er_ring")
)
def test_tasks_of_equal_shapes_are_compiled_once(name, compilations):
    given = {"num_tasks": 5, "num_classes": 3} if name == "er_ring" else {}
    method = getattr(baselines, name)(linear, SGD, **given)

    def count(tasks):
        jax.clear_caches()
        with compilations() as counted:
            baselines.train_sequence(method, PARAMS, tasks, batch_size=10)
        return counted.count

    assert (
        count(made_tasks(2))
        == count(made_tasks(5))
        < count(made_tasks(1) + made_tasks(1, (20, 25)))
    )


class KilledError(Exception):
    pass


def killed_after(task_id):
    def on_task(done, row):
        if done == task_id:
            raise KilledError

    return on_task


@pytest.mark.parametrize("name", slow_but(["rgo", "er_ring", "ewc_textbook"], "er_ring"))
def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, name):
    method = {
        "rgo": baselines.rgo(linear, rgo_jax.rgo(RATE, momentum=0.5)),
        "er_ring": baselines.er_ring(linear, SGD, num_tasks=4, num_classes=3),
        "ewc_textbook": baselines.ewc_textbook(linear, SGD, batches=2),
    }[name]
    tasks, path = made_tasks(4), tmp_path / "new" / "run.npz"
    given = {"batch_size": 10, "epochs": 2, "key": jax.random.key(3)}
    whole, expected = baselines.train_sequence(method, PARAMS, tasks, **given)
    rows = []
    with pytest.raises(KilledError):
        baselines.train_sequence(
            method, PARAMS, tasks, **given, checkpoint=path, on_task=killed_after(1)
        )
    # What a kill in the middle of a write leaves does no harm.
    path.with_name("run.npz.partial").write_bytes(b"half")
    resumed, state = baselines.train_sequence(
        method,
        PARAMS,
        tasks,
        **given,
        checkpoint=path,
        on_task=lambda task_id, row: rows.append((task_id, row)),
    )
    np.testing.assert_array_equal(resumed, whole)
    assert [task_id for task_id, _ in rows] == [2, 3]
    np.testing.assert_array_equal(rows[0][1], whole[2])

    def numbers(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)), state, expected
    )
    # Finished, it trains nothing more.
    again, _ = baselines.train_sequence(
        method, PARAMS, tasks, **given, checkpoint=path, on_task=killed_after(3)
    )
    np.testing.assert_array_equal(again, whole)
    assert sorted(path.parent.iterdir()) == [path]


def test_a_finished_run_goes_on_with_more_tasks(tmp_path):
    tasks, path = made_tasks(3), tmp_path / "run.npz"
    method = baselines.ewc(linear, SGD)
    whole, _ = baselines.train_sequence(method, PARAMS, tasks, batch_size=10)
    baselines.train_sequence(method, PARAMS, tasks[:2], batch_size=10, checkpoint=path)
    longer, _ = baselines.train_sequence(method, PARAMS, tasks, batch_size=10, checkpoint=path)
    np.testing.assert_array_equal(longer, whole)


def test_bfloat16_is_kept(tmp_path):
    params, path = {"w": jnp.zeros((4, 3), jnp.bfloat16)}, tmp_path / "run.npz"
    method = baselines.finetune(linear, SGD)
    run = {"batch_size": 10, "checkpoint": path}
    _, first = baselines.train_sequence(method, params, made_tasks(1), **run)
    _, again = baselines.train_sequence(method, params, made_tasks(1), **run)
    assert again.params["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(first.params["w"], again.params["w"])


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    tasks, method = made_tasks(2), baselines.ewc(linear, SGD)

    def run(method=method, params=PARAMS, tasks=tasks, **changes):
        given = {"batch_size": 10, "checkpoint": path} | changes
        return baselines.train_sequence(method, params, tasks, **given)

    run()
    with pytest.raises(ValueError, match=r"run.npz: a checkpoint of another run: its epochs is 1;"):
        run(epochs=2)
    with pytest.raises(ValueError, match="its key is"):
        run(key=jax.random.key(5))
    with pytest.raises(ValueError, match="its tasks is"):
        run(tasks=made_tasks(2, (60, 25)))
    with pytest.raises(ValueError, match="another method or model: only one of its state"):
        run(baselines.finetune(linear, SGD))
    with pytest.raises(ValueError, match=r"its state.params\['w'\] is float32 \(4, 3\)"):
        run(params={"w": jnp.zeros((4, 5))})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"run.npz: the checkpoint cannot be read"):
        run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [([1.0], [1], [1.0], [1])]}, r"Task 0 is \['list'"),
        ({"tasks": [(np.ones((4, 4)), np.ones(3), np.ones((4, 4)), np.ones(4))]}, "y of shape"),
        (
            {"tasks": [(np.ones((4, 4)), np.ones(4), np.ones((0, 4)), np.ones(0))]},
            "x_test of shape",
        ),
        ({"batch_size": 50}, "Task 0 has 40 examples, but batch_size is 50"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"tasks": made_tasks(1), "batch_size": 10} | change
    with pytest.raises(ValueError, match=message):
        baselines.train_sequence(baselines.finetune(linear, SGD), PARAMS, **given)


def test_what_has_no_place_in_the_ring_is_refused():
    tasks = made_tasks(2)

    def run(**places):
        method = baselines.er_ring(linear, SGD, **places)
        return baselines.train_sequence(method, PARAMS, tasks, batch_size=10)

    with pytest.raises(ValueError, match="Task 1, counted from 0, has no place in memory"):
        run(num_tasks=1, num_classes=3)
    with pytest.raises(
        ValueError, match="labels from 0 to 2, but the memory has places for 0 to 1"
    ):
        run(num_tasks=2, num_classes=2)
