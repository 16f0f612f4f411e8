"""Damaged and lying files: an error names each, and none takes memory or time that it asks for."""

import io
import os
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import limits
from tests.benchmarks.test_data import arrays

MEMORY = 4 * 2**20  # as if the machine had no more
GOOD = arrays()
DTYPES = ("|O", "<U7", "|S3", "<f2", "<f8", "<c16", "<M8[s]", "|b1", ">i4", "<i8", "<u8", "|V9")


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: MEMORY)


def saved(compressed=False, **changes):
    file = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(file, **(GOOD | changes))
    return file.getvalue()


def truncated(rng):
    whole = saved(compressed=bool(rng.integers(2)))
    return whole[: rng.integers(len(whole))]


def flipped(rng):
    raw = np.frombuffer(saved(compressed=bool(rng.integers(2))), np.uint8).copy()
    # In the archive's index, which is at its end, as often as anywhere.
    first = max(0, len(raw) - 350) if rng.integers(2) else 0
    for place in rng.integers(first, len(raw), rng.integers(1, 9)):
        raw[place] ^= 1 << rng.integers(8)
    return raw.tobytes()


def overwritten(rng):
    raw = bytearray(saved())
    start, length = rng.integers(len(raw)), rng.integers(1, 200)
    raw[start : start + length] = rng.bytes(length) if rng.integers(2) else bytes(length)
    return bytes(raw)


def with_lying_header(rng):
    """An array whose header, and perhaps the archive's index, promises another one."""
    rank, digits = rng.integers(0, 5), rng.integers(1, 14)
    shape = tuple(int(n) for n in rng.integers(-1, 10 ** int(digits), rank))
    header = {"descr": str(rng.choice(DTYPES)), "fortran_order": bool(rng.integers(2))}
    text = repr(header | {"shape": shape})
    if rng.integers(4) == 0:
        text = str(rng.choice(["{" * 900, "[" * 9000, "1" * 5000, "open('x')", "{'descr': 1}"]))
    raw = text.encode() + b"\n"
    version = bytes([int(rng.integers(1, 4)), 0])
    length = len(raw).to_bytes(2 if version[0] == 1 else 4, "little")
    return archive_with(
        f"{rng.choice(['x_train', 'y_train', 'y_test'])}.npy",
        b"\x93NUMPY" + version + length + raw + bytes(40),
        claimed=int(rng.choice([0, 2**20, 2**31, 2**40, 2**62])),
    )


def archive_with(name, content, claimed=0, compression=zipfile.ZIP_DEFLATED):
    """A good archive but for one file; of that the index claims a size."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved())) as good,
        zipfile.ZipFile(file, "w", compression) as made,
    ):
        for other in good.namelist():
            made.writestr(other, content if other == name else good.read(other))
        if claimed:
            made.getinfo(name).file_size = claimed
    return file.getvalue()


def of_other_arrays(rng):
    name = str(rng.choice(["x_train", "y_train", "x_test", "y_test", "superclasses"]))
    shape = tuple(int(n) for n in rng.integers(0, 14, rng.integers(0, 5)))
    if rng.integers(2):
        shape = {
            "x": (12 if "train" in name else 6, 5, 4),
            "y": (12 if "train" in name else 6,),
        }.get(name[0], (3,))
    extreme = np.array(rng.choice([-(2**62), -1, 0, 3, 255, 2**31 - 1, 2**31, 2**62], shape))
    with np.errstate(all="ignore"):
        return saved(**{name: extreme.astype(str(rng.choice(DTYPES)))})


def bomb(rng):
    """A few kilobytes that are 8 MiB."""
    shape = [(2**13, 32, 32), (8, 2**10, 2**10), (2**23,)][rng.integers(3)]
    name = str(rng.choice(["x_train", "y_test"]))
    return saved(compressed=True, **{name: np.zeros(shape, np.uint8)})


def of_another_compression(rng):
    method = [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA][rng.integers(2)]
    return archive_with("none", b"", compression=method)


KINDS = (
    truncated,
    flipped,
    overwritten,
    with_lying_header,
    of_other_arrays,
    bomb,
    of_another_compression,
)


def check_is_whole(dataset):
    """What every user of a dataset relies on."""
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert x.dtype in (np.uint8, np.float32)
        assert np.isfinite(x).all()
        assert x.shape[1:] == dataset.x_train.shape[1:]
        assert y.dtype == np.int32
        assert y.shape == x.shape[:1]
        assert y.min() >= 0
    assert dataset.num_classes <= len(dataset.y_train) + len(dataset.y_test)


def refused(path, content):
    """Whether a file is refused; it may also be whole by chance."""
    path.write_bytes(content)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        check_is_whole(data.load(str(path)))
    except ValueError as error:
        message = str(error)
        assert str(path) in message
        assert "\n" not in message
        assert len(message) < 1000
        return True
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * MEMORY
        assert time.perf_counter() - started < 20
    return False


# What is damaged may be what nothing depends on: bits of a date, or a legal array by chance.
SURVIVE = {"flipped": 0.7, "overwritten": 0.5, "of_other_arrays": 0.6, "truncated": 0.0}


def fuzz(kind, seeds, path):
    count = sum(refused(path, kind(np.random.default_rng(seed))) for seed in seeds)
    assert count >= (1 - SURVIVE.get(kind.__name__, 0)) * len(seeds)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damaged_npz(tmp_path, kind):
    fuzz(kind, range(15), tmp_path / "mine.npz")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_many_damaged_npz(tmp_path, kind):
    fuzz(kind, range(100, 350), tmp_path / "mine.npz")


@pytest.mark.timeout(30)
def test_what_is_no_file_is_not_opened(tmp_path):
    pipe, folder = tmp_path / "pipe.npz", tmp_path / "folder.npz"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(FileNotFoundError, match=r"\.npz: not a file; expected an \.npz file"):
            data.load(str(path))
    for absent in ("absent.npz", "x" * 300 + ".npz", "a\0b.npz"):
        with pytest.raises(FileNotFoundError, match=r"\.npz: no such file"):
            data.load(str(tmp_path / absent))


def test_a_header_is_believed_only_as_far_as_the_archive_goes(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)}
    )
    path = tmp_path / "mine.npz"
    path.write_bytes(archive_with("x_train.npy", file.getvalue() + bytes(64)))
    with pytest.raises(
        ValueError,
        match=r"header of x_train promises uint8 \[1099511627776, 8, 8\].* but 64 follow",
    ):
        data.load(str(path))
    size = len(file.getvalue()) + 2**46
    path.write_bytes(archive_with("x_train.npy", file.getvalue(), claimed=size))
    with pytest.raises(ValueError, match=r"takes 64 TiB of memory; there is 4 MiB\. Store fewer"):
        data.load(str(path))


def test_labels_of_any_size_cost_nothing(tmp_path):
    path = tmp_path / "mine.npz"
    labels = np.array([2**31 - 1, 7, 2**40] * 4)
    assert not refused(path, saved(y_train=labels, y_test=labels[:6]))
    dataset = data.load(str(path))
    assert dataset.y_train.tolist() == [1, 0, 2] * 4
    assert dataset.labels.tolist() == [7, 2**31 - 1, 2**40]
