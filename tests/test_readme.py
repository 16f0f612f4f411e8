"""The README and the pages of docs/: their code runs, their numbers and links are right."""

import ast
import pickle
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.__main__ import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
_, _, EXAMPLE, _, RESULTS, _ = re.split("^## ", README, flags=re.MULTILINE)
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*ROOT.glob("*.md"), *DOCS]
TABLES = (ROOT / "benchmarks" / "results" / "TABLES.md").read_text()


def name(page):
    return page.stem


def code_in(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code, page, namespace=None):
    namespace = {} if namespace is None else namespace
    with jax.numpy_rank_promotion("allow"):  # a user's programs, with jax's defaults
        exec(compile(code, str(page), "exec"), namespace)
    return namespace


def rows_of(text, label):
    """The cells after the first of each table row that begins with the label."""
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return [row[1:] for row in rows if row[0] == label]


def test_first_use():
    y = jnp.array([0, 1])
    tasks = [[(jnp.eye(2, 4), y), (-jnp.eye(2, 4), y)], [(jnp.eye(2, 4, k=2), y)]]

    def model(params, x):
        return x @ params

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model(params, x), y).mean()

    given = {"params": jnp.zeros((4, 3)), "tasks": tasks, "model": model, "loss": loss}
    found = run(code_in(README)[0], "README.md", given)
    assert found["state"][0].num_updates == 3
    # No feature of the examples is as free as it was.
    assert np.all(np.diagonal(found["state"][0].projection) < 0.99)
    assert np.any(found["params"] != 0)


def test_two_tasks(capsys):
    code = code_in(README)[1]
    rgo_line = "rgo_jax.consolidate(state, curvature, batches, params)"
    sgd_line = "rgo_jax.consolidate(state, curvature, batches, params, alpha=1e9)"
    assert rgo_line in code
    assert f"`{sgd_line}`" in README
    for label, program in (("RGO", code), ("SGD", code.replace(rgo_line, sgd_line))):
        run(program, "README.md")
        lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
        assert [len(line) for line in lines] == [1, 2]
        # Versions and devices round differently, and training amplifies it.
        (claim,) = rows_of(EXAMPLE, label)
        np.testing.assert_allclose(np.float64(lines[0] + lines[1]), np.float64(claim), atol=0.03)


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):  # what docs/benchmarks.md reads
        images = np.zeros((2, 4, 4, 3), np.uint8)
        content = {"image_data": images, "class_dict": {f"n-{split}": [0, 1]}}
        Path(f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content))
    run("".join(code_in(page.read_text())), page)


def test_pickles_become_folders_of_images(tmp_path, monkeypatch):
    test_code_of_a_page_runs(ROOT / "docs" / "benchmarks.md", tmp_path, monkeypatch)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/*.png"))
    assert found[:2] == ["mini-imagenet/n-test/000.png", "mini-imagenet/n-test/001.png"]
    assert len(found) == 6


def test_layout_on_many_devices_is_that_of_the_program_that_is_tested():
    def statements(code):
        lines = (line.split("#")[0].strip() for line in code.splitlines())
        return {line for line in lines if line}

    (layout,) = (
        code
        for code in code_in((ROOT / "docs" / "devices.md").read_text())
        if "projection_sharding" in code
    )
    program = (ROOT / "tests" / "many_devices.py").read_text()
    assert statements(layout) <= statements(program)


def test_commands_are_understood():
    blocks = re.findall(r"```sh\n(.*?)```", "".join(p.read_text() for p in PAGES), re.DOTALL)
    commands = re.findall(r"python -m benchmarks (.+)", "".join(blocks))
    assert len(commands) > 3
    for command in commands:
        make_parser().parse_args(shlex.split(command))  # exits if it is not


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def published(method, preset):
    """The paper's ACC, and our ACC and BWT, for each of the README's benchmarks."""
    for benchmark, network in (
        ("permuted-mnist", "mlp"),
        ("rotated-mnist", "mlp"),
        ("split-cifar100", "lenet-5"),
    ):
        rows = (
            row
            for row in rows_of(TABLES, benchmark)
            if (row[0], row[1], row[3]) == (network, method, preset) and len(row) > 11
        )
        _, _, _, _, paper, acc, _, _, bwt, *_ = next(rows, ["-"] * 9)
        yield paper, acc, bwt


REPRODUCED = {
    "RGO": ("RGO", "paper"),
    "RGO-2 (RGO without feature encoding)": ("RGO-2", "paper"),
    "STL (single-task learning)": ("STL", "paper"),
    "RGO, preset `recommended`": ("RGO", "recommended"),
    "STL, preset `recommended`": ("STL", "recommended"),
}


@pytest.mark.parametrize("label", REPRODUCED)
def test_table_beside_the_paper(label):
    method, preset = REPRODUCED[label]
    (row,) = (row for row in rows_of(RESULTS, label) if len(row) == 6)
    expected = [(acc, paper) for paper, acc, _ in published(method, preset)]
    if preset == "recommended":  # none of the paper's
        expected = [(acc, "-") for acc, _ in expected]
    assert row == [cell for pair in expected for cell in pair]


@pytest.mark.parametrize("method", ["RGO", "LOS", "OWM", "GPM", "ER-Ring", "A-GEM", "EWC", "SGD"])
def test_table_of_methods(method):
    (row,) = (row for row in rows_of(RESULTS, method) if len(row) == 3)
    (kept,) = (row[1] for row in rows_of(TABLES, method) if len(row) == 3)  # for 20 tasks
    means = [
        " / ".join(number.split(" ± ")[0] for number in (acc, bwt))
        for _, acc, bwt in list(published(method, "paper"))[:2]
    ]
    assert row == [*means, kept]
