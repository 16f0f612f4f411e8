"""A report of damaged files: an error that names the file, and nothing written."""

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest

from benchmarks import __main__ as cli
from benchmarks.report import figures
from benchmarks.report import pages as report
from benchmarks.run import json_input, results
from tests.benchmarks.damage import damage
from tests.benchmarks.made_results import ORIGIN, diverge, make_result

QUICK = {"num_tasks": 3}


@pytest.fixture(scope="module")
def whole():
    """Of each file by its path: a result with every field, and one that diverged."""
    rgo = make_result("rgo", 80, "permuted-digits", train=90, seeds=2, alpha=0.5, **QUICK)
    origin = ORIGIN | {"versions": {"jax": "1"}}
    rgo = rgo._replace(
        provenance=origin | {"before_resuming": [origin]},
    )
    sgd = diverge(make_result("sgd", 50, "rotated-digits", seeds=2, train=60, **QUICK), [0], task=1)
    return rgo, sgd


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are of one byte."""
    rendered = lambda figure, path: {path.with_suffix(".png"): b"."}  # noqa: E731
    monkeypatch.setattr(figures, "render", rendered)


def below(folder):
    """All there is: what each file holds, None of what is none."""
    return {
        path: path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def written(folder, whole):
    """The files of whole results, and of an earlier report."""
    paths = [results.save(result, folder) for result in whole]
    for path in ("README.md", "permuted-digits/accuracy.png", "rotated-digits/accuracy.png"):
        (folder / path).write_text("earlier")
    return paths


def check_report(folder, damaged, capsys):
    """Either nothing is written, and the error names the file, or only what a report is."""
    before = below(folder.parent)
    status = cli.main(["report", str(folder)])
    captured = capsys.readouterr()
    after = below(folder.parent)
    if status == 0:
        assert captured.err == ""
        assert before.keys() <= after.keys()
        changed = {path for path in after if path not in before or after[path] != before[path]}
        assert {path.name for path in changed} <= {"README.md", "accuracy.png", "accuracy.svg"}
        assert all(path.is_relative_to(folder) for path in changed)
        return False
    assert status == 2
    assert captured.err.startswith(f"error: {damaged}: "), captured.err
    assert len(captured.err) < 1000
    assert captured.err.endswith("python -m benchmarks measures it anew.\n")
    assert after == before
    return True


def refused(folder, damaged, capsys, match):
    with pytest.raises(ValueError, match=match):
        results.load(damaged)
    assert check_report(folder, damaged, capsys)


def at(**changes):
    """Sets values by their path, such as config__head."""

    def change(content):
        for path, value in changes.items():
            *parents, last = path.split("__")
            inner = content
            for name in parents:
                inner = inner[int(name)] if isinstance(inner, list) else inner[name]
            inner[int(last) if isinstance(inner, list) else last] = value

    return change


def without(name):
    return lambda content: content.pop(name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (at(format=99), "format is 99; expected 2"),
        (at(method="old"), "method is 'old'; expected one of rgo, "),
        (at(method=["rgo"]), "method is \\['rgo'\\]; expected one of"),
        (at(config__preset="old"), "config.preset is 'old'; expected one of paper"),
        (at(config__head="old"), "--head is 'old'; expected one of"),
        (at(config__unheard_of=1), "a key of config is 'unheard_of'; expected one of sequence"),
        (at(config__options__unheard_of=1), "a key of config.options is 'unheard_of'"),
        (at(config__options__alpha=-1), "alpha is -1.0; expected a finite number above 0"),
        (at(config__options__alpha="1"), "config.options.alpha is '1'; expected a number"),
        (at(config__num_tasks=True), "config.num_tasks is True; expected a whole number"),
        (at(config__num_tasks=4, changes__num_tasks=4), "r\\[0\\] is .*; expected a list of 4"),
        (at(config__fel="yes"), "config.fel is 'yes'; expected true or false"),
        (at(config=[]), "config is \\[\\]; expected an object"),
        (without("seeds"), "the file has no seeds"),
        (at(seeds=[]), "seeds is \\[\\]; expected a list of one or more"),
        (at(seeds=[0, 0]), "seeds is \\[0, 0\\]; expected numbers that follow one another"),
        (at(seeds__0=-1), "seeds\\[0\\] is -1; expected a whole number from 0"),
        (at(seeds__0=0.0), "seeds\\[0\\] is 0.0; expected a whole number"),
        (at(r__0__1__0=80), "r\\[0\\]\\[1\\]\\[0\\] is 80; expected a number from 0 to 1"),
        (at(r__0__1__0="0.8"), "r\\[0\\]\\[1\\]\\[0\\] is '0.8'; expected a number"),
        (at(r__1__0__2=0.5), "r\\[1\\]\\[0\\]\\[2\\] is 0.5; expected null above the diagonal"),
        (at(r__1=[]), "r\\[1\\] is \\[\\]; expected a list of 3"),
        (at(losses__0__0={}), "losses\\[0\\]\\[0\\] is {}; expected a number"),
        (at(train__0__0=-0.1), "train\\[0\\]\\[0\\] is -0.1; expected a number from 0 to 1"),
        (at(compile_seconds=-1), "compile_seconds is -1; expected a number from 0"),
        (at(task_seconds=[1]), "task_seconds is \\[1\\]; expected a list of 3"),
        (at(changes__alpha=0.7), "changes.alpha is 0.7; expected 0.5, as config has it"),
        (at(changes__alpha=None), "changes.alpha is None; expected 0.5, as config has it"),
        (at(changes__unheard_of=1), "a key of changes is 'unheard_of'"),
        (at(config__dataset="../x"), "config.dataset is '../x'; expected one of digits, mnist"),
        (at(config__dataset="../x.npz"), "it is that of permuted-.."),
        (at(config__protocol="../x"), "config.protocol is '../x'; expected one of small, table-1"),
        (at(provenance__command="a\nb"), "provenance.command is 'a\\\\nb'; expected a line"),
        (at(provenance__device="\ud800"), "provenance.device is '\\\\ud800'; expected a line"),
        (at(provenance__versions=[]), "provenance.versions is \\[\\]; expected an object"),
        (at(provenance__before_resuming__0__commit=1), r"before_resuming\[0\].commit is 1; "),
        (at(memory_bytes=1.5), "memory_bytes is 1.5; expected a whole number from 0"),
        (at(data="\x1b[2J"), "data is '\\\\x1b\\[2J'; expected a line of printable text"),
        (at(surprise=1), "a key of the file is 'surprise'; expected one of format, method"),
    ],
)
def test_a_wrong_value_is_told_by_its_place(whole, undrawn, tmp_path, capsys, change, match):
    folder = tmp_path / "results"
    path, _ = written(folder, whole)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    refused(folder, path, capsys, match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[]", "the file is \\[\\]; expected an object"),
        (b"null", "the file is None; expected an object"),
        (b"{}", "the file has no changes, compile_seconds, config"),
        (b'{"format": 2, "format": 2}', "the key 'format' is there twice; expected once"),
        (b'{"format": NaN}', "NaN is not JSON; expected a finite number, or null"),
        (b'{"format": -Infinity}', "-Infinity is not JSON"),
        (b'{"format": 1e400}', "the number '1e400' is too large; expected a finite one"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "the number '999.*' is too large"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
        (b"\xff\xfe{\x00}\x00", "can't decode byte 0xff"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"format": "\xe9"}', "can't decode byte 0xe9"),
    ],
)
def test_what_is_no_json_by_the_letter(whole, undrawn, tmp_path, capsys, content, match):
    folder = tmp_path / "results"
    path, _ = written(folder, whole)
    path.write_bytes(content)
    refused(folder, path, capsys, match)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def no_target(path):
    path.symlink_to("nowhere")


def itself(path):
    path.symlink_to(path)


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (pipe, "it is a folder, pipe, socket or device; expected a regular file"),
        (device, "it is a folder, pipe, socket or device"),
        (Path.mkdir, "it is a folder, pipe, socket or device"),
        (no_target, "No such file"),
        (itself, "symbolic links"),
        (huge, f"it has {2**40} bytes; expected at most {json_input.MAX_BYTES}"),
    ],
)
def test_what_is_no_file_of_bounded_size_is_not_opened(
    whole, undrawn, tmp_path, capsys, monkeypatch, make, match
):
    folder = tmp_path / "results"
    path, _ = written(folder, whole)
    path.unlink()
    make(path)
    monkeypatch.setattr("tests.benchmarks.test_damaged_results.below", os.listdir)
    refused(folder, path, capsys, match)


def test_a_result_belongs_where_its_words_say(whole, undrawn, tmp_path, capsys):
    folder = tmp_path / "results"
    path, _ = written(folder, whole)
    for name in ("rgo.json", path.name.replace("rgo", "sgd"), "rgo_alpha=0.5 (copy).json"):
        other = path.with_name(name)
        path.rename(other)
        refused(folder, other, capsys, f"it is that of permuted-digits/{path.name}")
        other.rename(path)
    elsewhere = folder / "rotated-digits" / path.name
    path.rename(elsewhere)
    refused(folder, elsewhere, capsys, "it is that of permuted-digits/")


def test_nothing_is_written_unless_everything_can_be(whole, undrawn, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "results"
    written(folder, whole)
    before = below(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(report, "markdown", lambda *args: 1 / 0)  # the last to be made
        with pytest.raises(ZeroDivisionError):
            cli.main(["report", str(folder)])
    assert below(tmp_path) == before

    # The name of a file that would be among the last to take its place.
    (folder / "permuted-digits" / "accuracy.png").unlink()
    (folder / "permuted-digits" / "accuracy.png").mkdir()
    before = below(tmp_path)
    assert cli.main(["report", str(folder)]) == 2
    assert "accuracy.png: cannot be written (a folder has its name)" in capsys.readouterr().err
    assert below(tmp_path) == before
    (folder / "permuted-digits" / "accuracy.png").rmdir()
    before = below(tmp_path)

    write_bytes = Path.write_bytes

    def full(path, content):
        if content.startswith(b"# Results"):  # the README, the last to be written
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cli.main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / 'README.md'}: cannot be written (")
    assert "No space left on device). Make room for it" in error
    assert below(tmp_path) == before


def fuzzed(whole, tmp_path, capsys, seeds):
    """How many of the damaged files are refused; the rest are reported on."""
    folder = tmp_path / "results"
    paths = written(folder, whole)
    texts = {path: path.read_text() for path in paths}
    count = 0
    for seed in seeds:
        rng = random.Random(seed)
        path = rng.choice(paths)
        path.write_bytes(damage(texts[path], rng))
        try:
            count += check_report(folder, path, capsys)
        except BaseException as error:
            error.add_note(f"seed {seed}: {path.read_bytes()!r}")
            raise
        path.write_text(texts[path])
    return count


def test_no_damage_is_believed(whole, undrawn, tmp_path, capsys):
    assert fuzzed(whole, tmp_path, capsys, range(150)) > 100


@pytest.mark.slow
def test_no_damage_is_believed_at_length(whole, undrawn, tmp_path, capsys):
    assert fuzzed(whole, tmp_path, capsys, range(1000, 1600)) > 400


@pytest.mark.slow
def test_what_damage_leaves_whole_is_drawn(whole, tmp_path, capsys):
    assert fuzzed(whole, tmp_path, capsys, range(2000, 2050)) < 50


def test_what_is_whole_is_reported(whole, tmp_path, capsys):
    """Not by accident is everything above refused."""
    folder = tmp_path / "results"
    for path, result in zip(written(folder, whole), whole, strict=True):
        found = results.load(path)
        assert dataclasses.asdict(found.config) == dataclasses.asdict(result.config)
        assert found.changes == result.changes
        assert not check_report(folder, path, capsys)
    assert (folder / "permuted-digits" / "accuracy.svg").read_text().startswith("<?xml")
