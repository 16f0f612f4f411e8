"""How many numbers a method has in use; and the heads and networks that some need."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import presets
from benchmarks.data import Dataset
from benchmarks.methods import METHODS
from benchmarks.methods.base import network_size
from benchmarks.report import merging
from benchmarks.run import checks, dry_run, results, train
from tests.benchmarks.made_results import make_result
from tests.benchmarks.problems import two_tasks
from tests.benchmarks.small_networks import problem_of


def non_zeros(problem, state):
    """Counts what of plain SGD's network is not 0, so that seeds differ."""
    used = sum(jnp.sum(leaf > 0) for leaf in jax.tree.leaves(state.params))
    return used / network_size(problem)


COUNTING = METHODS["sgd"]._replace(capacity=non_zeros)


def test_all_heads_are_part_of_the_network():
    # 9 inputs, two hidden layers of 100, three heads of four classes.
    hidden = 9 * 100 + 100 * 100 + 200
    assert network_size(problem_of(9, head="per_task")) == hidden + 3 * (100 * 4 + 4)
    assert network_size(problem_of(9, head="shared")) == hidden + 100 * 4 + 4


def test_capacity_is_measured_for_each_seed_after_the_last_task(digits):
    config = two_tasks("sgd", examples_per_task=50, epochs=1)
    seen = []

    class Observer(train.Observer):
        def on_task(self, progress):
            used = [np.asarray(leaf) for leaf in jax.tree.leaves(progress.state.params)]
            share = sum((u > 0).sum(tuple(range(1, u.ndim))) for u in used)
            seen.append((share / sum(u[0].size for u in used), progress.measured.capacity))

    measured = train.run(config, COUNTING, digits, range(2), observer=Observer())
    (_, before), (expected, after) = seen
    assert np.isnan(before).all()
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    np.testing.assert_array_equal(measured.capacity, after)
    assert 0 < after[0] < 1
    assert after[0] != after[1]


def test_a_method_without_one_has_none(digits):
    config = two_tasks("sgd", examples_per_task=50, epochs=1, num_tasks=1)
    assert np.isnan(train.run(config, METHODS["sgd"], digits, range(2)).capacity).all()


def test_capacity_is_traced_before_a_run(digits):
    def refused(problem, state):
        raise ValueError("no such numbers. Remedy.")

    with pytest.raises(ValueError, match="no such numbers"):
        dry_run.check(two_tasks("sgd"), COUNTING._replace(capacity=refused), digits, 1)


def test_capacity_of_results(tmp_path):
    plain = make_result("sgd", 80, "permuted-digits", seeds=2, num_tasks=3)
    counted = plain._replace(measured=plain.measured._replace(capacity=np.array([1.3, 2.71])))
    path = results.save(counted, tmp_path)
    np.testing.assert_array_equal(results.load(path).measured.capacity, [1.3, 2.71])
    later = make_result("sgd", 80, "permuted-digits", seeds=1, num_tasks=3)
    later = later._replace(seeds=[2], measured=later.measured._replace(capacity=np.array([2.0])))
    (whole,) = merging.merge([counted, later])
    assert whole.measured.capacity.tolist() == [1.3, 2.71, 2.0]

    content = json.loads(path.read_text())
    del content["capacity"]  # of an older version
    path.write_text(json.dumps(content))
    assert np.isnan(results.load(path).measured.capacity).all()
    for wrong in ([1.3], [1.3, -1], ["1.3", None], 1):
        path.write_text(json.dumps(content | {"capacity": wrong}))
        with pytest.raises(ValueError, match="capacity"):
            results.load(path)


PLAIN = METHODS["sgd"]._replace(label="X", heads=("per_task",), plain_network=True)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"head": "masked"}, r"--head is masked, with .* X .* Choose --head per_task\."),
        ({"network": "vit"}, r"--network is vit, but X .* Choose --network mlp, .*lenet-5, "),
        ({"network": "resnet-18"}, "--network is resnet-18, but X needs"),
        ({"biases": "frozen"}, r"--biases is frozen, with .* Choose --biases own\."),
        ({"fel": True}, r"--fel is given, but X .* Leave it out\."),
    ],
)
def test_heads_and_networks_that_a_method_needs(changes, match):
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.arange(100, dtype=np.int32)
    dataset = Dataset("cifar100", images, labels, images, labels)
    few = {"examples_per_task": 5, "batch_size": 5}
    config = presets.config("split-cifar100", method=METHODS["gpm"], network="lenet-5", **few)
    checks.check(config, PLAIN, dataset)
    changed = dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match=match):
        checks.check(changed, PLAIN, dataset)
    checks.check(dataclasses.replace(changed, fel=None, biases="own"), METHODS["sgd"], dataset)
