"""What the README says its example prints, and the results it quotes."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import results

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()


def code_in(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def printed(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    return [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]


def test_example(capsys):
    (code,) = code_in(README)
    first, second, sgd = map(ast.literal_eval, re.findall(r"`(\['.*?\])`", README))
    rgo_line = "rgo_jax.consolidate(state, curvature, batches)"
    sgd_line = "rgo_jax.consolidate(state, curvature, batches, alpha=1e9)"
    assert rgo_line in code
    assert f"`{sgd_line}`" in README
    for lines, claims in (
        (printed(code, capsys), [first, second]),
        (printed(code.replace(rgo_line, sgd_line), capsys), [first, sgd]),
    ):
        assert [len(line) for line in lines] == [1, 2]
        for line, claim in zip(lines, claims, strict=True):
            # Versions and devices round differently, and training amplifies it.
            np.testing.assert_allclose(np.float64(line), np.float64(claim), atol=0.03)


def test_guide_to_many_devices_is_the_program_that_is_tested():
    def statements(code):
        lines = (line.split("#")[0].strip() for line in code.splitlines())
        return {line for line in lines if line}

    program = (ROOT / "tests" / "many_devices.py").read_text()
    assert statements(code_in(GUIDE)[-1]) <= statements(program)


ROWS = {
    "RGO, the paper's setting": "rgo",
    "RGO, recommended": "rgo_preset=recommended",
    "RGO without FEL, the paper's setting": "rgo-2",
    "LOS, the paper's setting": "los",
    "GPM, the paper's setting": "gpm",
    "ER-Ring, the paper's setting": "er-ring",
    "A-GEM, the paper's setting": "a-gem",
    "EWC, the paper's setting": "ewc",
    "SGD, the paper's setting": "sgd",
    "STL, the paper's setting": "stl",
    "STL, recommended": "stl_preset=recommended",
}


@pytest.mark.parametrize("row", ROWS)
def test_results_table(row):
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    for cell, benchmark in zip(line.split("|")[2:6:2], ("permuted", "rotated"), strict=True):
        path = ROOT / "benchmarks" / "results" / f"{benchmark}-mnist" / f"{ROWS[row]}.json"
        result = results.load(path)
        expected = f"{result.acc.mean():.2f} ± {result.acc.std(ddof=1):.2f}"
        if result.method != "stl":
            expected += f" / {result.bwt.mean():.2f} ± {result.bwt.std(ddof=1):.2f}"
        assert cell.strip() == expected
