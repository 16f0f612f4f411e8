"""What a benchmark, a preset and a method resolve to, against what was decided elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.data import pixels, tasks
from benchmarks.methods import METHODS
from benchmarks.presets import BENCHMARKS, PRESETS, config
from benchmarks.run import experiment
from benchmarks.run import problem as problems

AUTHORS = ("rgo", "rgo-2", "sgd", "stl")
BASELINES = [name for name in METHODS if name not in AUTHORS]

# The settings behind the paper's numbers, in what appears to be the authors' program.
ON_MNIST = {
    "network": "mlp",
    "head": "shared",
    "learning_rate": 0.1,
    "schedule": "constant",
    "num_tasks": 20,
    "training_images": 55_000,
    "examples_per_task": 10_000,
    "epochs": 1,
    "batch_size": 10,
    "initial_values": "uniform",
    "biases": "own",
    "label_smoothing": 0,
    "fel": None,
    "fel_on_convs": True,
    "fel_on_input": False,
    "fel_per_layer": False,
    "fel_on_first_task": False,
    "validation": False,
    "forward_transfer": False,
    "infer_task": False,
    "scrambled": False,
}
ON_IMAGES = ON_MNIST | {
    "head": "masked",
    "learning_rate": 0.03,
    "training_images": None,
    "examples_per_task": 2_500,
    "epochs": 20,
    "conv_biases": False,
}
OF_RGO = {
    "alpha": 0.01,
    "columns": "mean",
    "normalize": True,
    "protect_biases": True,
    "relative_alpha": False,
    "curvature_classes": "present",
    "online": False,
    "unused_weight": 0,
    "momentum": 0,
}
AUTHORS_SETTINGS = [
    ("permuted-mnist", "rgo", ON_MNIST, OF_RGO | {"curvature_batches": None}),
    ("permuted-mnist", "stl", ON_MNIST, {"momentum": 0}),
    ("rotated-mnist", "rgo-2", ON_MNIST | {"interpolation": "bilinear"},
     OF_RGO | {"curvature_batches": None}),
    ("rotated-mnist", "sgd", ON_MNIST | {"interpolation": "bilinear"}, {"momentum": 0}),
    ("split-cifar100", "rgo", ON_IMAGES | {"network": "lenet-5"},
     OF_RGO | {"curvature_batches": 50}),
    ("split-cifar100", "rgo-2", ON_IMAGES | {"network": "lenet-5"},
     OF_RGO | {"curvature_batches": 50}),
    ("split-cifar100", "sgd", ON_IMAGES | {"network": "lenet-5-no-pool"}, {"momentum": 0}),
    ("split-cifar100", "stl", ON_IMAGES | {"network": "lenet-5-no-pool"}, {"momentum": 0}),
    ("superclass-cifar100", "stl", ON_IMAGES | {"network": "lenet-5-no-pool"}, {"momentum": 0}),
    ("split-mini-imagenet", "rgo", ON_IMAGES | {"network": "alexnet-7", "learning_rate": 0.01},
     OF_RGO | {"curvature_batches": 50}),
    ("split-mini-imagenet", "sgd", ON_IMAGES | {"network": "alexnet-7", "learning_rate": 0.01},
     {"momentum": 0}),
    ("split-mini-imagenet", "stl",
     ON_IMAGES | {"network": "alexnet-7-narrow", "learning_rate": 0.01}, {"momentum": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "method", "fields", "options"), AUTHORS_SETTINGS)
def test_the_preset_paper_is_the_authors_program(benchmark, method, fields, options):
    found = config(benchmark, method=METHODS[method])
    assert found.options == options
    assert fields == {name: getattr(found, name) for name in fields}
    # Feature encoding layers are what RGO-2 lacks, and SGD and STL.
    assert METHODS[method].fel == (method == "rgo")
    # The user's network wins.
    assert config(benchmark, method=METHODS[method], network="vgg-11").network == "vgg-11"


def test_steps_of_the_authors_program():
    assert config("permuted-mnist").steps_per_task == 1000
    assert config("split-cifar100").steps_per_task == 5000
    table_1 = config("split-cifar100", protocol="table-1")
    assert table_1.steps_per_task == 2000
    assert table_1.learning_rate == 0.03


# What the harness of Chaudhry et al. has beside, before there was a choice and since.
HARNESS = {
    "initial_values": "orthogonal",
    "biases": "own",
    "conv_biases": True,
    "interpolation": "nearest",
    "training_images": None,
    "label_smoothing": 0.0,
    "fel": None,
    "fel_on_convs": True,
    "fel_on_input": True,
    "fel_per_layer": True,
    "fel_on_first_task": True,
    "validation": False,
    "forward_transfer": False,
    "infer_task": False,
    "scrambled": False,
    "options": {},
}
HARNESS_PROTOCOLS = {
    "permuted-mnist": ("table-1", "mlp", "shared", 0.1, 20, 10_000, 1),
    "rotated-mnist": ("table-1", "mlp", "shared", 0.1, 20, 10_000, 1),
    "permuted-digits": ("small", "mlp-100", "shared", 0.1, 10, 1_000, 5),
    "rotated-digits": ("small", "mlp-100", "shared", 0.1, 10, 1_000, 5),
    "split-digits": ("small", "mlp-100", "per_task", 0.1, 5, 250, 5),
    "split-cifar100": ("table-3", "lenet-5", "per_task", 0.03, 20, 2_500, 20),
    "superclass-cifar100": ("table-3", "lenet-5", "per_task", 0.03, 20, 2_500, 20),
    "split-mini-imagenet": ("table-3", "alexnet-7", "per_task", 0.01, 20, 2_500, 20),
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("method", BASELINES)
def test_the_baselines_are_in_the_harness_as_they_were(benchmark, method):
    protocol, network, head, rate, num_tasks, examples, epochs = HARNESS_PROTOCOLS[benchmark]
    sequence, dataset = benchmark.split("-", 1)
    own_rates = {"cifar100": 0.4, "mini-imagenet": 0.2} if method == "los" else {}
    assert dataclasses.asdict(config(benchmark, method=METHODS[method])) == HARNESS | {
        "sequence": sequence,
        "dataset": dataset,
        "protocol": protocol,
        "preset": "paper",
        "network": network,
        "head": head,
        "learning_rate": own_rates.get(dataset, rate),
        "schedule": "constant",
        "num_tasks": num_tasks,
        "examples_per_task": examples,
        "epochs": epochs,
        "batch_size": 10,
        "options": dataclasses.asdict(METHODS[method].options()),
    }


def problem_of(method, benchmark="permuted-digits", **changes):
    """Its network on grey images of 28 x 28."""
    resolved = config(benchmark, method=METHODS[method], **changes)
    sequence = tasks.Sequence(10, (784,), 1, 1, False, None, None)
    key = jax.random.key(2)
    return problems.make_problem(resolved, METHODS[method], sequence, "mnist", key)


def test_a_network_begins_as_its_setting_tells():
    values = {}
    for method in ("rgo", "gpm"):
        params = problem_of(method, "permuted-mnist").init(jax.random.key(0))
        assert sum(p.size for p in jax.tree.leaves(params)) == 269_322
        values[method] = np.asarray(params["Dense_0"]["kernel"])
        bias = {float(b) for b in params["head"]["Dense_0"]["bias"]}
        assert bias == {np.float32(0.1) if method == "gpm" else 0.0}
    np.testing.assert_allclose(values["gpm"].T @ values["gpm"], np.eye(256), atol=1e-5)
    assert 0.999 / 28 < np.abs(values["rgo"]).max() <= 1 / 28


def test_fel_is_where_the_setting_tells():
    """With the harness's setting the first task is permuted too."""
    x = jax.random.uniform(jax.random.key(1), (3, 784))
    for method, same in (("rgo", True), ("gpm", False)):
        first, without = (
            problem.logits(problem.init(jax.random.key(0)), x, jnp.int32(0))
            for problem in (problem_of(method, fel=fel) for fel in (True, False))
        )
        assert bool(np.array_equal(first, without)) is same


def test_rotated_images_are_interpolated_as_the_setting_tells(digits):
    def first_task(method):
        resolved = config("rotated-digits", method=METHODS[method])
        sequence = experiment.sequence_of(resolved, digits)
        encode = sequence.encode(jax.random.key(0), jnp.int32(0))
        return np.asarray(encode(jnp.asarray(digits.x_train[:5]), jnp.zeros(5))[0]) * 255

    angle = tasks.LOS_ANGLES[0]
    flat = np.pad(digits.x_train[:5].reshape(5, 64), ((0, 0), (0, 1)))
    nearest = flat[:, pixels.rotation_index(8, 8, angle)]
    np.testing.assert_allclose(first_task("gpm"), nearest, atol=1e-4)
    index, weights = pixels.bilinear_rotation(8, 8, angle)
    between = np.sum(flat[:, index] * weights, axis=1)
    np.testing.assert_allclose(first_task("rgo"), between, atol=1e-3)
    assert np.abs(between - nearest).max() > 20


def test_data_is_what_the_experiment_uses(digits):
    few = config("permuted-digits", training_images=600)
    found = experiment.data_of(few, digits)
    np.testing.assert_array_equal(found.x_train, digits.x_train[:600])
    np.testing.assert_array_equal(found.y_train, digits.y_train[:600])
    np.testing.assert_array_equal(found.x_test, digits.x_test)
    assert found.fingerprint() != digits.fingerprint()
    whole = experiment.data_of(config("permuted-digits"), digits)
    assert whole.fingerprint() == digits.fingerprint()
    # The last sixth of what is used is held out, not of what there is.
    held_out = experiment.data_of(dataclasses.replace(few, validation=True), digits)
    np.testing.assert_array_equal(held_out.x_train, digits.x_train[:500])
    np.testing.assert_array_equal(held_out.x_test, digits.x_train[500:600])


def test_presets_change_what_a_setting_has_and_the_user_both():
    for sequence in ("permuted", "rotated"):
        benchmark, named = f"{sequence}-mnist", PRESETS["recommended"][sequence]
        plain, recommended = config(benchmark).flat, config(benchmark, "recommended").flat
        assert recommended == plain | named | {"preset": "recommended"}
        assert config(benchmark, "recommended", head="shared").flat == recommended | {
            "head": "shared"
        }
    # An option that a preset names reaches the methods that have it.
    on_images = {name: config("split-cifar100", "recommended", METHODS[name]) for name in METHODS}
    assert on_images["rgo"].options["normalize"] is False
    assert not on_images["gpm"].options
    assert on_images["sgd"].options == {"momentum": 0.0}
    assert set(PRESETS) == {"paper", "recommended", "without-ids"}


def test_options_go_to_the_methods_that_have_them():
    given = {"alpha": 2.0, "momentum": 0.9, "columns": None}
    rgo, sgd, gpm = (
        config("permuted-mnist", method=METHODS[name], **given) for name in ("rgo", "sgd", "gpm")
    )
    assert rgo.options == config("permuted-mnist").options | {"alpha": 2.0, "momentum": 0.9}
    assert sgd.options == {"momentum": 0.9}
    assert gpm == config("permuted-mnist", method=METHODS["gpm"])
    assert rgo.flat["alpha"] == 2.0
    assert "options" not in rgo.flat
    assert rgo.flat["network"] == rgo.network


def test_cosine_schedule_starts_anew_in_each_task():
    cosine = config("permuted-mnist", schedule="cosine", learning_rate=0.4)
    schedule = cosine.learning_rate_schedule()
    rates = np.asarray(jax.vmap(schedule)(jnp.array([0, 500, 999, 1000, 1500, 19_999])))
    np.testing.assert_allclose(rates, [0.4, 0.2, 0, 0.4, 0.2, 0], atol=1e-5)
    constant = config("permuted-mnist").learning_rate_schedule()
    assert float(constant(12_345)) == pytest.approx(0.1)


def test_the_papers_rates_of_mini_imagenet():
    """0.01 for twenty epochs, 0.03 for the 2000 steps of Table 1, both as the preset has them."""
    found = {
        protocol: config("split-mini-imagenet", protocol=protocol)
        for protocol in (None, "table-3", "table-1")
    }
    rates = {protocol: each.learning_rate for protocol, each in found.items()}
    assert rates == {None: 0.01, "table-3": 0.01, "table-1": 0.03}
    assert found["table-1"].steps_per_task == 2000
    changed = config("split-mini-imagenet", protocol="table-1", learning_rate=0.2)
    assert changed.learning_rate == 0.2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"benchmark": "permuted-cifar"}, "Unknown benchmark 'permuted-cifar'.*permuted-mnist"),
        ({"benchmark": "permuted-mnist", "preset": "x"}, "Unknown preset 'x'; expected one of pap"),
        ({"benchmark": "permuted-mnist", "head": "x"}, "--head is 'x'.*shared, frozen"),
        ({"benchmark": "permuted-mnist", "schedule": "x"}, "--schedule is 'x'"),
        (
            {"benchmark": "permuted-mnist", "num_tasks": 0},
            "--num-tasks is 0; expected an integer fr",
        ),
        (
            {"benchmark": "permuted-mnist", "epochs": 2**31},
            "--epochs is 2147483648; expected an in",
        ),
        (
            {"benchmark": "permuted-mnist", "batch_size": 2.5},
            "--batch-size is 2.5; expected an int",
        ),
        (
            {"benchmark": "permuted-mnist", "training_images": 0},
            "--training-images is 0; expected an integer from 1 to 2147483647",
        ),
        (
            {"benchmark": "permuted-mnist", "learning_rate": float("inf")},
            "--learning-rate is inf; expected a finite number above 0",
        ),
        ({"benchmark": "permuted-mnist", "network": "x"}, "--network is 'x'.*lenet-5-no-pool"),
        (
            {"benchmark": "permuted-mnist", "initial_values": "x"},
            "--initial-values is 'x'.*unif",
        ),
        ({"benchmark": "permuted-mnist", "biases": "x"}, "--biases is 'x'.*own, frozen, input"),
        ({"benchmark": "permuted-mnist", "interpolation": "x"}, "--interpolation is 'x'.*neare"),
        (
            {"benchmark": "permuted-mnist", "alpha": -1},
            "--alpha is -1; expected a finite number abo",
        ),
        (
            {"benchmark": "permuted-mnist", "alpha": float("nan")},
            "--alpha is nan; expected a finite",
        ),
        (
            {"benchmark": "permuted-mnist", "columns": "x"},
            "--columns is 'x'; expected one of mean, sum, signs, each",
        ),
        (
            {"benchmark": "permuted-mnist", "curvature_classes": "x"},
            "--curvature-classes is 'x'; expected one of all, present",
        ),
        (
            {"benchmark": "permuted-mnist", "curvature_batches": 0},
            "--curvature-batches is 0; expected an integer from 1",
        ),
        (
            {"benchmark": "permuted-mnist", "momentum": 1.0},
            "--momentum is 1.0; expected 0 to below 1",
        ),
        (
            {"benchmark": "permuted-mnist", "method": METHODS["sgd"], "momentum": -0.1},
            "--momentum is -0.1; expected 0 to below 1",
        ),
        (
            {"benchmark": "permuted-mnist", "alhpa": 1},
            "Unknown option 'alhpa'; expected one of alpha, apd_beta, apd_decay, apd_every, "
            "apd_lambda_1, apd_lambda_2, columns",
        ),
        (
            {"benchmark": "permuted-mnist", "label_smoothing": 1},
            "--label-smoothing is 1; expected 0",
        ),
        (
            {"benchmark": "split", "data": "mnist"},
            "--data is 'mnist'; expected the path of an",
        ),
        ({"benchmark": "permuted-mnist", "data": "a.npz"}, "for --data.*permuted, rotated"),
    ],
)
def test_configuration_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        config(**arguments)
