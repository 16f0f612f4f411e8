"""Batch normalisation, which the authors' STL and SGD have in ResNet-18."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import presets
from benchmarks.data import Dataset, tasks
from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ARCHITECTURES, Architecture, ResNet18
from benchmarks.networks.network import Network
from benchmarks.report import paper
from benchmarks.run import checks
from benchmarks.run import problem as problems
from rgo_jax import linen
from tests.small_models import task_of

NAME = "resnet-18-batch-norm"
SHAPE = (4, 4, 3)


class OneConv(Network, kw_only=True):
    """In place of ResNet-18, for the tests to be fast."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x, task_id, encoding_id=None):
        averages = not self.is_mutable_collection("batch_stats")
        x = linen.Conv(2, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=averages)(x))
        return self.classify(x.reshape(len(x), -1), self.encoder(task_id), task_id)


@pytest.fixture
def one_conv(monkeypatch):
    build = partial(OneConv, batch_norm=True)
    monkeypatch.setitem(ARCHITECTURES, NAME, Architecture(build, SHAPE))


def problem_of(method, **changes):
    config = presets.config("split-cifar100", method=METHODS[method], network=NAME, **changes)
    sequence = tasks.Sequence(3, SHAPE, 1, 1, False, None, None)
    return problems.make_problem(config, METHODS[method], sequence, "none", jax.random.key(0))


def test_it_follows_each_convolution():
    network = ResNet18(
        width=2, num_classes=3, num_tasks=2, head="shared", fel=True, batch_norm=True
    )
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, (linen.FeatureEncoding, nn.BatchNorm, nn.Dense, nn.Conv)):
            found.append(type(context.module).__name__[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *SHAPE)), 0)
    calls = "".join(found)
    assert calls.replace("CB", "C").count("B") == 0
    assert calls.count("CB") == calls.count("C") == 20
    assert calls.startswith("CBFCBFCBF")


def test_averages_are_of_what_was_trained_on(one_conv):
    problem = problem_of("sgd")
    sgd, stl = (METHODS[name].build(problem) for name in ("sgd", "stl"))
    fresh = sgd.init(jax.random.key(1))
    x, y = 3 + jax.random.normal(jax.random.key(2), (6, *SHAPE)), jnp.arange(6) % 3
    task = task_of(x, y)
    state, _ = jax.jit(lambda state: sgd.step(state, (x, y), task))(fresh)

    conv = linen.Conv(2, (3, 3), use_bias=False).apply({"params": fresh.params["Conv_0"]}, x)
    found = state.statistics["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], 0.01 * conv.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * conv.var((0, 1, 2)), rtol=1e-4)

    # An example is classified by them, whatever comes with it; and trained by its batch's.
    evaluate, train = (
        jax.jit(logits)
        for logits in (
            lambda x: sgd.apply(state, x, task.id),
            lambda x: problem.logits(state.params, x, task.id),
        )
    )
    np.testing.assert_allclose(evaluate(x)[:2], evaluate(x[:2]), rtol=1e-3, atol=1e-5)
    assert not np.allclose(train(x)[:2], train(x[:2]), rtol=0.1, atol=1e-3)

    # In the next task SGD goes on with them, and a model of its own begins anew.
    after, alone = (
        method.start_task(state, task, jax.random.key(3)).statistics for method in (sgd, stl)
    )
    jax.tree.map(np.testing.assert_array_equal, after, state.statistics)
    jax.tree.map(np.testing.assert_array_equal, alone, fresh.statistics)
    # They are part of each model that it keeps.
    assert len(stl.memory(state)) == 19
    assert {len(jax.tree.leaves(kept)) for kept in stl.memory(state)} == {2 + 1 + 2 + 2}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sgd", "stl")])
def test_methods_that_keep_no_averages_refuse_it(method):
    """Before anything is run."""
    config = presets.config("split-cifar100", method=METHODS[method], network=NAME)
    images, labels = np.zeros((100, *SHAPE), np.uint8), np.arange(100, dtype=np.int32)
    dataset = Dataset("cifar100", images, labels, images, labels)
    with pytest.raises(ValueError, match=r"has batch normalisation.*Choose --network resnet-18\."):
        checks.check(config, METHODS[method], dataset)


def test_the_authors_have_it_under_stl_and_sgd_only():
    setting = paper.Setting("split-cifar100", "table-1", "resnet-18")
    own = {method: paper.own(setting, method).network for method in METHODS}
    assert {method for method, network in own.items() if network == NAME} == {"sgd", "stl"}
    assert own["rgo"] == "resnet-18"
