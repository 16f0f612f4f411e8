"""All methods alike: what they keep, that they forget less than SGD, with FEL and under vmap."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
from benchmarks import presets
from benchmarks.data import tasks
from benchmarks.methods import METHODS
from benchmarks.run import experiment, train
from benchmarks.run import problem as problems
from benchmarks.run.programs import compile_programs
from tests.benchmarks.problems import two_tasks
from tests.marks import slow_but
from tests.small_models import task_of


def test_memory_is_counted_in_bytes(digits):
    found = {
        name: experiment.memory_bytes(two_tasks(name, num_tasks=3), spec, digits)
        for name, spec in METHODS.items()
    }
    layers = [(64, 100), (100, 100), (100, 10)]
    parameters = sum(d * m + m for d, m in layers)
    ring = 3 * 10 * (64 * 4 + 1)
    bases = sum(d**2 + d for d, _ in layers) + 3 * 2
    expected = {
        "rgo": 4 * sum(d**2 + m**2 for d, m in layers),
        "sgd": 0,
        "stl": 2 * 4 * parameters,
        "ewc": 3 * 4 * parameters,
        "ewc-textbook": 2 * 4 * parameters,
        "a-gem": ring,
        "er-ring": ring,
        "gpm": 4 * bases,
        "sgp": 4 * bases,
        "owm": 4 * (sum(d**2 for d, _ in layers) + 3),
        "owm-online": 4 * (sum(d**2 for d, _ in layers) + 3),
    }
    assert {name: found[name] for name in expected} == expected


@pytest.fixture(scope="module")
def sgd(digits):
    """How much SGD forgets of the first of two tasks, in the setting of the baselines."""
    return forgetting(train.run(two_tasks("gpm"), METHODS["sgd"], digits, seeds=range(1)))


def forgetting(run):
    return SimpleNamespace(
        bwt=float(rgo_jax.backward_transfer(run.r)[0]),
        learned=float(run.r[0, 1, 1]),
    )


BASELINES = [name for name in METHODS if name not in ("rgo", "rgo-2", "sgd", "stl")]


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_forgets_less_than_sgd(digits, sgd, method):
    # With so few steps HAT learns little beside its penalty.
    changes = {"hat_lambda": 0.1} if method == "hat" else {}
    config = two_tasks(method, **changes)
    found = forgetting(train.run(config, METHODS[method], digits, seeds=range(1)))
    assert sgd.bwt < -0.1
    assert found.bwt > sgd.bwt + 0.03
    assert found.learned > sgd.learned - 0.05


@pytest.mark.parametrize("method", slow_but(METHODS, "rgo", "stl"))
def test_trains_on_the_losses_of_the_problem_and_on_no_others(digits, method):
    config, spec = two_tasks(method), METHODS[method]
    sequence = tasks.SEQUENCES["permuted"](digits, 2)
    given = problems.make_problem(config, spec, sequence, "digits", jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.uniform(size=(20, 64)), jnp.float32), jnp.arange(20) % 10

    def moved(problem):
        """How far a step in the first task, and another in the second, go."""
        trained = spec.build(problem)

        @jax.jit
        def steps(key):
            state = first = trained.init(key)
            for task_id in range(2):
                state, _ = trained.step(state, batch, task_of(*batch, task_id, batch_size=10))
            return first.params, state.params

        before, after = steps(jax.random.key(1))
        differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), before, after)
        return max(map(float, jax.tree.leaves(differences)))

    assert moved(given) > 1e-3
    nothing = given._replace(losses=lambda logits, y: 0 * logits[:, 0])
    # What decays, or is made sparse, does so without a loss.
    assert moved(nothing) < 5e-5


@pytest.mark.slow
def test_any_method_runs_with_and_without_fel(digits):
    quick = {"examples_per_task": 300, "epochs": 1}
    without = train.run(two_tasks(fel=False, **quick), METHODS["rgo"], digits, seeds=range(1))
    rgo_2 = train.run(two_tasks(**quick), METHODS["rgo-2"], digits, seeds=range(1))
    np.testing.assert_array_equal(without.r, rgo_2.r)
    with_fel = train.run(two_tasks(fel=True, **quick), METHODS["rgo-2"], digits, seeds=range(1))
    assert not np.array_equal(with_fel.r, rgo_2.r)


@pytest.mark.slow
def test_without_the_trace_rule_later_tasks_are_learned_more_slowly(digits):
    runs = [
        train.run(two_tasks(normalize=rule), METHODS["rgo"], digits, seeds=range(1))
        for rule in (True, False)
    ]
    (first, second), (same_first, slower_second) = (run.losses[0] for run in runs)
    assert same_first == pytest.approx(first, rel=1e-4)
    assert slower_second > 1.02 * second


@pytest.mark.slow
@pytest.mark.parametrize("method", slow_but(METHODS, "rgo", "gpm"))
def test_seeds_under_vmap_call_lapack_in_turn_on_a_cpu(digits, monkeypatch, method):
    """Batched calls for several layers at once can wait for ever there; here none is run."""
    config = two_tasks(method, head="per_task", initial_values="orthogonal")
    spec, lowered = METHODS[method], []
    one_seed = experiment.functions(config, spec, digits)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: lowered.append(self.as_text()))
    compile_programs(one_seed, config, digits, range(2))
    calls = re.findall("@lapack_.*", "\n".join(lowered))
    assert any("geqrf" in call for call in calls)
    assert [call for call in calls if re.search(r"tensor<\d+x\d+x\d+x", call)] == []


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("rgo", {}),
        ("rgo", {"unused_weight": 0.1}),
        ("gpm", {}),
        pytest.param("sgd", {"network": "resnet-18-batch-norm"}, marks=pytest.mark.slow),
    ],
)
def test_permutations_are_drawn_before_the_steps_on_a_gpu(digits, monkeypatch, method, changes):
    """Inside the loop over steps XLA would draw them anew each time there, with a sort."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    given = {"network": "mlp-100", "fel": True} | changes
    config = presets.config("split-digits", method=METHODS[method], **given)
    one_seed = experiment.functions(config, METHODS[method], digits)
    zero = jnp.int32(0)
    data = {name: jnp.asarray(getattr(digits, name)) for name in ("x_train", "y_train")}
    state = jax.eval_shape(one_seed.init, zero, data)
    _, epochs = jax.eval_shape(one_seed.start, zero, data, state, zero)

    def steps(state, epochs):
        return one_seed.steps(1, zero, data, state, epochs, zero, zero)

    equations = jax.make_jaxpr(steps)(state, epochs).eqns
    (loop,) = [eqn for eqn in equations if eqn.primitive.name == "scan"]
    assert " sort[" not in str(loop)
    assert any(" sort[" in str(eqn) for eqn in equations)


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_vmap_over_seeds_gives_what_map_gives(digits, monkeypatch, method):
    config = two_tasks(method, examples_per_task=200, epochs=1)
    mapped = train.run(config, METHODS[method], digits, seeds=range(2))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batched = train.run(config, METHODS[method], digits, seeds=range(2))
    np.testing.assert_allclose(batched.losses, mapped.losses, rtol=1e-3)
    np.testing.assert_allclose(batched.r, mapped.r, atol=0.02)
