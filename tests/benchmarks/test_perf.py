"""The cost of RGO as operation counts, which do not depend on how busy the machine is."""

import jax
import pytest

from benchmarks import __main__ as cli
from benchmarks.perf import layers, training
from benchmarks.perf.consolidation import measure_tasks
from benchmarks.perf.training import step_functions


@pytest.mark.parametrize("network", ["mlp", "lenet-5"])
def test_projecting_layers_cost_a_fraction_of_plain_projection(network):
    sgd, plain, fused = (
        jax.jit(function).lower(*args).cost_analysis()["flops"]
        for function, *args in step_functions(network, batch_size=10, steps=1)
    )
    assert plain > 10 * sgd
    # Counted: 2.2 for the MLP, 1.4 for LeNet-5.
    assert fused < 2.6 * sgd


def test_the_state_does_not_grow_with_tasks():
    first, last = measure_tasks([32], (1, 5), rounds=1)
    assert (first["tasks"], last["tasks"]) == (1, 5)
    assert first["state MiB"] == last["state MiB"]
    assert 0 < last["smallest eigenvalue of P"] < first["smallest eigenvalue of P"] < 1
    assert last["asymmetry"] == 0


@pytest.mark.slow
def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layers, "CONVOLUTIONS", ((3, (4, 4, 2)),))
    monkeypatch.setattr(layers, "MATRIX", 64)
    monkeypatch.setattr(layers, "COPY", 100)
    monkeypatch.setitem(training.STEPS, "mlp", 2)
    out = tmp_path / "perf.md"
    argv = [
        "--networks",
        "mlp",
        "--batch-sizes",
        "4",
        "--dims",
        "32",
        "--rounds",
        "1",
        "--tasks",
        "1,3",
    ]
    assert cli.main(["perf", *argv, "--out", str(out)]) == 0
    text = out.read_text()
    for words in ("| mlp | 4 |", "## Folding a task in", "copy GB/s", "| 3 |"):
        assert words in text
    assert cli.main(["perf", "--networks", "vgg-99"]) == 2
    assert "--networks is 'vgg-99'; expected one of mlp" in capsys.readouterr().err
