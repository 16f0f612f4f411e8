"""Notebooks and their texts are the same, and no output is kept in git."""

import json
from pathlib import Path

import jupytext
import pytest

TEXTS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
    assert [text.stem for text in TEXTS] == ["1_remember", "2_your_own_model", "3_the_papers_table"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_a_notebook_is_its_text(text):
    notebook = text.with_suffix(".ipynb")
    assert cells(jupytext.read(notebook)) == cells(jupytext.read(text)), (
        f"Run: jupytext --sync notebooks/{text.name}"
    )
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)
def test_an_install_replaces_nothing(text):
    """On Colab jax is built for its accelerator."""
    (install,) = (cell for _, cell in cells(jupytext.read(text)) if '"pip", "install"' in cell)
    assert 'find_spec("rgo_jax") is None' in install
    for word in ("-U", "--upgrade", "--force", "jax[", "==", "cuda"):
        assert word not in install.replace('SOURCE == ""', "")
