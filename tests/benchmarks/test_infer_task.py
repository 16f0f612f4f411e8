"""Accuracy without task ids: from logits to a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import presets
from benchmarks.methods import METHODS, unused
from benchmarks.networks.layers import HEADS
from benchmarks.report import merging, without_ids
from benchmarks.run import checks, experiment, inference, results, train
from benchmarks.run import problem as problems
from benchmarks.run.checkpoints import Checkpoints
from tests.benchmarks.made_results import ORIGIN, make_result
from tests.benchmarks.markdown import rows
from tests.benchmarks.problems import two_tasks
from tests.marks import slow_but
from tests.small_models import task_of

FIRST = inference.SCORES.index("uniform")


def made(num_seeds, num_tasks, known=0.9, single=0.6, group=0.8):
    """An `Inference` in which groups do better than single examples."""
    of = inference.not_measured(num_seeds, num_tasks)
    accuracy = np.full(of.accuracy.shape, group)
    accuracy[:, :, 0] = single
    return inference.Inference(
        known=np.full(of.known.shape, known),
        task=accuracy,
        accuracy=accuracy,
        mixed=accuracy + 0.05,
        confusion=np.broadcast_to(np.eye(num_tasks), of.confusion.shape),
        auroc=accuracy.mean(axis=-1),
    )


def inferring(result, **shares):
    """The same with tasks inferred."""
    config = dataclasses.replace(result.config, infer_task=True)
    found = made(len(result.seeds), config.num_tasks, **shares)
    return result._replace(config=config, measured=result.measured._replace(inference=found))


decide = jax.jit(inference.decide, static_argnums=4)


@pytest.mark.parametrize("own_classes", [False, True])
def test_decisions(own_classes):
    # Examples of task 1, of class 0: sure and right under its id, under task 0's sure and wrong for
    # one, and right for the other. Task 2, surest of all, has not been trained.
    of_task = [[[0, 9], [5, 0], [0, 1]], [[7, 0], [3, 0], [2, 0]], [[90, 0]] * 3]
    decisions = decide(jnp.array(of_task, float), jnp.zeros(3, int), 1, 2, own_classes)
    assert decisions.known == 1
    np.testing.assert_allclose(decisions.task[FIRST, 0], 1 / 3)  # the last example alone
    np.testing.assert_allclose(decisions.accuracy[FIRST, 0], 1 / 3 if own_classes else 2 / 3)
    np.testing.assert_allclose(decisions.named, [2 / 3, 1 / 3, 0])
    # In a group of all three the scores of task 0 are higher on average.
    assert decisions.task[FIRST, 1] == 0
    assert [best.shape[1] for best in decisions.best] == [3, 1, 1, 1, 1]


def test_logits_that_are_no_numbers_are_no_decision():
    logits = jnp.full((2, 3, 4), jnp.nan)
    decisions = decide(logits, jnp.zeros(3, int), 0, 2, False)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(decisions))


@pytest.fixture(scope="module")
def config():
    return two_tasks("rgo", num_tasks=3, epochs=2, infer_task=True)


@pytest.fixture(scope="module")
def measured(config, digits):
    return train.run(config, METHODS["rgo"], digits, seeds=range(2))


def test_tasks_are_inferred(measured):
    found = measured.inference
    assert [x.shape for x in found] == list(inference.shapes(2, 3))
    assert all(np.isfinite(x).all() for x in found)
    # Groups are told apart better than single examples, and those better than by chance.
    of_groups = found.task[:, FIRST].mean(axis=(0, 2))
    assert of_groups[-1] > of_groups[0] > 0.5
    np.testing.assert_allclose(found.confusion.sum(axis=-1), 1)
    diagonal = found.confusion.diagonal(axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, found.task[:, FIRST, 0])
    assert (found.auroc[:, FIRST] > 0.5).all()
    # The digits' test images are fewer than `EXAMPLES`: these are all of them.
    np.testing.assert_allclose(found.known, measured.r[:, -1], atol=1e-6)


def test_it_changes_no_other_number(config, measured, digits):
    plain = dataclasses.replace(config, infer_task=False)
    without = train.run(plain, METHODS["rgo"], digits, seeds=range(2))
    np.testing.assert_array_equal(without.r, measured.r)
    assert np.isnan(without.inference.known).all()


def test_from_a_checkpoint_and_a_file(measured, config, tmp_path):
    checkpoints = Checkpoints(tmp_path / "x.checkpoint", {}, ORIGIN)
    progress = train.Progress(2, measured, {"w": jnp.zeros((2, 3))})
    checkpoints.save(progress)
    restored = checkpoints.restore(progress).measured
    jax.tree.map(np.testing.assert_array_equal, restored, measured)
    saved = inferring(make_result("rgo", 80, seeds=2))
    loaded = results.load(results.save(saved, tmp_path))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
        loaded.measured.inference,
        saved.measured.inference,
    )
    # What was not asked for is not there.
    wrong = saved._replace(config=dataclasses.replace(saved.config, infer_task=False))
    path = results.save(saved, tmp_path)
    text = path.read_text().replace('"infer_task": true', '"infer_task": false')
    path.write_text(text)
    with pytest.raises(ValueError, match=r"inference\.known is .*; expected there if config has"):
        results.load(path)
    assert "inference" not in results.save(wrong, tmp_path).read_text()


def test_seeds_of_two_runs_are_joined():
    one = inferring(make_result("rgo", 80, seeds=2))
    other = inferring(make_result("rgo", 80, seeds=2), known=0.5)._replace(seeds=[2, 3])
    (whole,) = merging.merge([one, other])
    np.testing.assert_allclose(whole.measured.inference.known.mean(axis=1), [0.9, 0.9, 0.5, 0.5])


def test_where_ids_change_nothing_none_is_inferred(digits):
    for method, changes, is_told in (
        ("sgd", {}, True),
        ("stl", {}, True),
        ("sgd", {"fel": True}, False),
        ("ewc", {"head": "per_task"}, False),
    ):
        config = two_tasks(method, num_tasks=2, infer_task=True, **changes)
        notes = checks.notes(config, METHODS[method], digits)
        assert any("nothing to infer" in note for note in notes) == is_told
        assert experiment.infers_tasks(config, METHODS[method]) != is_told


def test_the_table():
    shared = inferring(make_result("rgo", 80, "permuted-mnist"))
    page = without_ids.markdown([shared, make_result("sgd", 50)], {"permuted-mnist": "x.png"})
    by_id, mixed, by_score, unseen = rows(page, "RGO")
    assert by_id[5:8] == ["90.00 ± 0.00", "60.00 ± 0.00 (60.0)", "80.00 ± 0.00 (80.0)"]
    assert mixed[6] == "65.00 ± 0.00"
    assert by_score[6] == "60.00 ± 0.00 (60.0)"
    assert unseen[7] == "80.00 ± 0.00"
    assert not rows(page, "SGD")
    assert without_ids.markdown([make_result("sgd", 50)], {}) == ""


def test_the_figure():
    shared = inferring(make_result("rgo", 80, "permuted-mnist"))
    lines, matrix = without_ids.figure("permuted-mnist", [shared]).axes[:2]
    curve = lines.get_lines()[0]
    np.testing.assert_allclose(curve.get_ydata(), [60, 80, 80, 80, 80])
    assert curve.get_xdata().tolist() == list(inference.GROUPS)
    np.testing.assert_allclose(matrix.images[0].get_array(), 100 * np.eye(20))
    assert without_ids.figure("permuted-mnist", [make_result("rgo", 80)]) is None


@pytest.mark.parametrize("head", slow_but(HEADS, "frozen"))
def test_unused_encodings_teach_no_head(head, digits):
    """One step in the second task, with and without: heads move alike, the rest does not."""
    after = []
    for weight in (0.0, 1.0):
        config = two_tasks("rgo", num_tasks=3, head=head, unused_weight=weight)
        sequence = experiment.sequence_of(config, digits)
        key = jax.random.key(0)
        problem = problems.make_problem(config, METHODS["rgo"], sequence, digits.name, key)
        method = METHODS["rgo"].build(problem)
        x, y = jax.random.uniform(key, (10, 64)), jnp.arange(10) % problem.num_classes
        task = task_of(x, y)._replace(id=jnp.int32(1))
        state, _ = jax.jit(lambda key, m=method, b=(x, y), t=task: m.step(m.init(key), b, t))(key)
        after.append(state.params)
    plain, unsure = after
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        unsure["head"],
        plain["head"],
    )
    assert float(jnp.abs(unsure["Dense_0"]["kernel"] - plain["Dense_0"]["kernel"]).max()) > 1e-5


def test_a_table_has_room_for_unused_encodings(digits, monkeypatch):
    """On an accelerator permutations are looked up: the same as those that are drawn."""
    config = two_tasks("rgo", num_tasks=3, unused_weight=1.0)
    sequence = experiment.sequence_of(config, digits)
    key, x = jax.random.key(0), jnp.asarray(digits.x_train[:5]).reshape(5, -1) / 255
    outputs = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda name=backend: name)
        problem = problems.make_problem(config, METHODS["rgo"], sequence, digits.name, key)
        params, last = problem.init(key), jnp.int32(2 + unused.COUNT)
        outputs.append(problem.logits(params, x, jnp.int32(0), encoding_id=last))
        other = problem.logits(params, x, jnp.int32(0), encoding_id=last - 1)
        assert float(jnp.abs(outputs[-1] - other).max()) > 1e-3
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_unused_encodings_need_encodings(digits):
    config = two_tasks("rgo-2", num_tasks=2, unused_weight=0.5)
    with pytest.raises(
        ValueError, match=r"RGO-2 is to train under .* Add --fel, .*unused_weight=0\.5"
    ):
        checks.check(config, METHODS["rgo-2"], digits)


def test_a_weight_is_no_negative_number():
    with pytest.raises(ValueError, match=r"--unused-weight is -1\.0; expected a finite number"):
        presets.config("permuted-digits", unused_weight=-1.0)


@pytest.mark.slow
def test_tasks_are_inferred_more_often_after_training_to_be_unsure(measured, config, digits):
    unsure = dataclasses.replace(config, options=config.options | {"unused_weight": 0.5})
    found = train.run(unsure, METHODS["rgo"], digits, seeds=range(2)).inference
    before, after = (x.task[:, FIRST, 0].mean() for x in (measured.inference, found))
    assert after > before + 0.03
