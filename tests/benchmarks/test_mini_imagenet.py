import functools
import os
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from benchmarks.data import mini_imagenet

# Three classes of six images, of which two are for testing.
SMALL = mini_imagenet.Form(num_classes=3, train=4, test=2, size=5)
NAMES = ("n03", "n01", "n02")

rng = np.random.default_rng(0)
IMAGES = {name: rng.integers(0, 256, (6, 5, 5, 3)).astype(np.uint8) for name in NAMES}


def write_folders(directory, images=IMAGES, parents=("", "", "")):
    for parent, (name, arrays) in zip(parents, images.items(), strict=True):
        folder = directory / parent / name
        folder.mkdir(parents=True)
        for index, array in enumerate(arrays):
            Image.fromarray(array).save(folder / f"{name}_{index}.png")


def read(tmp_path):
    return mini_imagenet.open_source(str(tmp_path), SMALL).read()


def check(arrays):
    assert arrays["x_train"].shape == (12, 5, 5, 3)
    assert arrays["x_train"].dtype == np.uint8
    assert arrays["y_train"].dtype == np.int32
    # Labels go by sorted name; consecutive examples are of different classes.
    assert arrays["y_train"].tolist() == [0, 1, 2] * 4
    assert arrays["y_test"].tolist() == [0, 1, 2] * 2
    for label, name in enumerate(sorted(NAMES)):
        for split, expected in (("train", IMAGES[name][:4]), ("test", IMAGES[name][4:])):
            images = arrays[f"x_{split}"][arrays[f"y_{split}"] == label]
            np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("parents", [("", "", ""), ("train", "val", "test"), ("train",) * 3])
def test_folders(tmp_path, parents):
    write_folders(tmp_path / "mini-imagenet", parents=parents)
    (tmp_path / "mini-imagenet" / "README").write_text("not a class")
    (tmp_path / "mini-imagenet" / ".hidden").mkdir()
    check(read(tmp_path))


def test_by_name_with_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RGO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(
        mini_imagenet, "open_source", functools.partial(mini_imagenet.open_source, form=SMALL)
    )
    write_folders(tmp_path / "mini-imagenet")
    decoded = data.load("mini-imagenet")
    assert decoded.name == "mini-imagenet"
    assert decoded.num_classes == 3
    check(decoded._asdict())
    # Every class is held out for validation.
    assert decoded.validation().y_test.tolist() == [1, 2]

    with monkeypatch.context() as patch:
        patch.setattr(mini_imagenet.Source, "read", None)  # nothing is decoded again
        cached = data.load("mini-imagenet", data_dir=str(tmp_path))
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(decoded, name), getattr(cached, name))

    # An image that was replaced is read anew.
    Image.fromarray(255 - IMAGES["n01"][0]).save(tmp_path / "mini-imagenet" / "n01" / "n01_0.png")
    changed = data.load("mini-imagenet")
    np.testing.assert_array_equal(changed.x_train[0], 255 - decoded.x_train[0])


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mini-imagenet: no such folder\. Expected there"):
        mini_imagenet.open_source(str(tmp_path))


def test_missing_folders(tmp_path):
    directory = tmp_path / "mini-imagenet"
    directory.mkdir()
    with pytest.raises(ValueError, match=r"found 0 class folders, not 3\. Expected there"):
        read(tmp_path)
    write_folders(directory, {"n01": IMAGES["n01"]}, ["train"])
    with pytest.raises(ValueError, match=r"below train \(there is no val and no test\), not 3"):
        read(tmp_path)


def test_a_class_in_two_folders(tmp_path):
    write_folders(tmp_path / "mini-imagenet", parents=("train", "train", "train"))
    write_folders(tmp_path / "mini-imagenet", {"n01": IMAGES["n01"]}, ["test"])
    with pytest.raises(ValueError, match="has the class n01 in train and in test; expected each"):
        read(tmp_path)


def test_images_missing_or_too_many(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    folder = tmp_path / "mini-imagenet" / "n02"
    (folder / "list.txt").write_text("one too many")
    with pytest.raises(ValueError, match="n02: has 7 files; expected 6 images"):
        read(tmp_path)
    (folder / "list.txt").unlink()
    (folder / "n02_3.png").unlink()
    with pytest.raises(ValueError, match="n02: has 5 files; expected 6 images"):
        read(tmp_path)


def test_what_is_no_image(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "n01" / "n01_4.png"
    whole = path.read_bytes()
    flipped = whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:40] + bytes(20), flipped):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"n01_4\.png: not a readable JPEG or PNG of 5 x 5 pixels \(.*Get it"
        ):
            read(tmp_path)


def test_only_jpeg_and_png_are_tried_whatever_the_name(tmp_path):
    """Pillow would start other programs for some formats."""
    write_folders(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "n01" / "n01_4.png"
    image = Image.fromarray(IMAGES["n01"][4])
    for format_ in ("EPS", "BMP", "TIFF", "PPM"):
        image.save(path, format_)
        with pytest.raises(ValueError, match=r"n01_4\.png: not a readable JPEG or PNG"):
            read(tmp_path)
    image.save(path, "JPEG", quality=95)
    difference = read(tmp_path)["x_test"][0].astype(int) - IMAGES["n01"][4]
    assert np.abs(difference).mean() < 60


def test_images_of_another_size_are_not_decoded(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "n01" / "n01_4.png"
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"n01_4\.png: .*it is 5 pixels wide and 7 high.*scale"):
        read(tmp_path)
    # 12 kilobytes that would be 300 megabytes.
    Image.new("L", (10_000, 8_000)).save(path)
    assert path.stat().st_size < 2e5
    tracemalloc.start()
    with pytest.raises(ValueError, match="it is 10000 pixels wide and 8000 high"):
        read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
    # Of its size only the header is told.
    header = b"IHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + b"\x08\x02\x00\x00\x00"
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ValueError, match=r"n01_4\.png: not a readable JPEG or PNG"):
        read(tmp_path)


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "n01" / "n01_4.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match=r"n01_4\.png: not a file; expected an image"):
        read(tmp_path)


def test_pickles_are_not_read(tmp_path):
    directory = tmp_path / "mini-imagenet"
    directory.mkdir()
    for split in ("train", "val", "test"):
        (directory / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(
        ValueError, match=r"found 0 class folders.*Pickles are not read.*docs/bench"
    ):
        read(tmp_path)


def test_grey_images_become_colour(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    grey = IMAGES["n01"][0, :, :, 0]
    Image.fromarray(grey).save(tmp_path / "mini-imagenet" / "n01" / "n01_0.png")
    np.testing.assert_array_equal(read(tmp_path)["x_train"][0], np.stack([grey] * 3, axis=-1))
