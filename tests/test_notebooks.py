"""Notebooks and their texts are the same, no output is kept in git, and an install spares jax."""

import importlib.util
import json
import subprocess
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ["1_remember", "2_your_own_model", "3_the_papers_table", "4_language_model"]


def cells(path):
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_there_are_no_others():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text(name):
    notebook, text = FOLDER / f"{name}.ipynb", FOLDER / f"{name}.py"
    assert cells(notebook) == cells(text), f"Run: jupytext --sync notebooks/{name}.py"
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def installed(name, folder, monkeypatch):
    """What the notebook's first program asks pip and git for, in a folder."""
    commands = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    code = next(source for kind, source in cells(FOLDER / f"{name}.py") if kind == "code")
    exec(code, {})
    return commands


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_where_it_is_there(name, monkeypatch):
    assert installed(name, FOLDER, monkeypatch) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_install_from_the_checkout(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ((_, *command),) = installed(name, FOLDER, monkeypatch)
    assert command[:4] == ["-m", "pip", "install", "--quiet"]
    # Nothing that makes pip replace a jax that is new enough, or Colab's protobuf.
    assert command[4] == str(FOLDER.parent)
    needed = {"matplotlib"}
    if name != "4_language_model":  # it has no images
        needed |= {"scikit-learn"}
    assert needed <= set(command[5:])
    assert set(command[5:]) <= {"matplotlib", "pillow", "rich", "scikit-learn"}


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_install_from_the_latest_wheel(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="Upload a wheel"):
        installed(name, tmp_path, monkeypatch)
    for number in (1, 2):
        (tmp_path / f"rgo_jax-0.{number}.0-py3-none-any.whl").touch()
    ((*_, wheel, _, _),) = installed(name, tmp_path, monkeypatch)
    assert wheel == str(tmp_path / "rgo_jax-0.2.0-py3-none-any.whl")
