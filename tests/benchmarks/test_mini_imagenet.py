import functools
import io
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
from PIL import Image

from benchmarks import data, mini_imagenet, restricted_pickle

# Three classes of six images, of which two are for testing.
SMALL = mini_imagenet.Form(num_classes=3, train=4, test=2, size=5)
NAMES = ("n03", "n01", "n02")  # the classes of the train, val and test files

rng = np.random.default_rng(0)
IMAGES = {name: rng.integers(0, 256, (6, 5, 5, 3)).astype(np.uint8) for name in NAMES}


def write_folders(directory, images=IMAGES, parents=("", "", "")):
    for parent, (name, arrays) in zip(parents, images.items(), strict=True):
        folder = directory / parent / name
        folder.mkdir(parents=True)
        for index, array in enumerate(arrays):
            Image.fromarray(array).save(folder / f"{name}_{index}.png")


def write_pickles(directory, dump=pickle.dumps, change=None):
    directory.mkdir(parents=True)
    for split, name in zip(("train", "val", "test"), NAMES, strict=True):
        # Not in order in the file: the class's list of indices says which image comes first.
        content = {"image_data": IMAGES[name][::-1], "class_dict": {name: [5, 4, 3, 2, 1, 0]}}
        if change and split == "val":
            change(content)
        (directory / f"mini-imagenet-cache-{split}.pkl").write_bytes(dump(content))


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


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings."""

    def __init__(self, file):
        super().__init__(file, protocol=2, fix_imports=True)

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def dump_python2(content):
    file = io.BytesIO()
    Python2Pickler(file).dump(content)
    written = file.getvalue().replace(b"numpy._core", b"numpy.core")
    assert b"_codecs" not in written
    return written


@pytest.mark.parametrize("parents", [("", "", ""), ("train", "val", "test"), ("train",) * 3])
def test_folders(tmp_path, parents):
    write_folders(tmp_path / "mini-imagenet", parents=parents)
    (tmp_path / "mini-imagenet" / "README").write_text("not a class")
    (tmp_path / "mini-imagenet" / ".hidden").mkdir()
    check(read(tmp_path))


@pytest.mark.parametrize(
    "dump",
    [functools.partial(pickle.dumps, protocol=protocol) for protocol in range(6)] + [dump_python2],
    ids=[*(f"protocol{protocol}" for protocol in range(6)), "python2"],
)
def test_pickles(tmp_path, dump):
    write_pickles(tmp_path / "mini-imagenet", dump)
    check(read(tmp_path))


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_with_other_arrays(tmp_path, protocol):
    def change(content):
        content["image_data"] = np.asfortranarray(content["image_data"])
        content["class_dict"] = {"n01": np.array([5, 4, 3, 2, 1, 0], ">i8")}

    write_pickles(
        tmp_path / "mini-imagenet", functools.partial(pickle.dumps, protocol=protocol), change
    )
    check(read(tmp_path))


def test_by_name_with_a_cache_for_images_only(tmp_path, monkeypatch):
    monkeypatch.setenv("RGO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "folders"))
    monkeypatch.setattr(
        mini_imagenet, "open_source", functools.partial(mini_imagenet.open_source, form=SMALL)
    )
    write_pickles(tmp_path / "pickles" / "mini-imagenet")
    from_pickles = data.load("mini-imagenet", data_dir=str(tmp_path / "pickles"))
    assert not (tmp_path / "cache").exists()
    write_folders(tmp_path / "folders" / "mini-imagenet")
    from_images = data.load("mini-imagenet")
    assert from_images.name == from_pickles.name == "mini-imagenet"
    assert from_images.num_classes == 3
    # Every class is held out for validation.
    assert from_images.validation().y_test.tolist() == [1, 2]

    with monkeypatch.context() as patch:
        patch.setattr(mini_imagenet.Source, "read", None)  # nothing is decoded again
        cached = data.load("mini-imagenet")
    for name in ("x_train", "y_train", "x_test", "y_test"):
        for other in (from_images, cached):
            np.testing.assert_array_equal(getattr(from_pickles, name), getattr(other, name))

    # An image that was replaced is read anew.
    Image.fromarray(255 - IMAGES["n01"][0]).save(
        tmp_path / "folders" / "mini-imagenet" / "n01" / "n01_0.png"
    )
    changed = data.load("mini-imagenet")
    np.testing.assert_array_equal(changed.x_train[0], 255 - from_images.x_train[0])


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mini-imagenet: no such folder\. Expected there"):
        mini_imagenet.open_source(str(tmp_path))


def test_a_missing_pickle(tmp_path):
    write_pickles(tmp_path / "mini-imagenet")
    (tmp_path / "mini-imagenet" / "mini-imagenet-cache-val.pkl").unlink()
    with pytest.raises(
        ValueError, match=r"has no mini-imagenet-cache-val\.pkl; expected all three"
    ):
        read(tmp_path)


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


def test_corrupt_and_wrongly_sized_images(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    path = tmp_path / "mini-imagenet" / "n01" / "n01_4.png"
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"n01_4\.png: not a readable image \(.*5 x 5 pixels"):
            read(tmp_path)
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(path)
    with pytest.raises(
        ValueError, match=r"n01_4\.png: is 5 pixels wide and 7 high; expected 5 x 5"
    ):
        read(tmp_path)


def test_grey_images_become_colour(tmp_path):
    write_folders(tmp_path / "mini-imagenet")
    grey = IMAGES["n01"][0, :, :, 0]
    Image.fromarray(grey).save(tmp_path / "mini-imagenet" / "n01" / "n01_0.png")
    np.testing.assert_array_equal(read(tmp_path)["x_train"][0], np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_data": None}, "image_data is no array; expected uint8"),
        ({"image_data": IMAGES["n01"].astype(int)}, r"image_data is int64 \[6, 5, 5, 3\]"),
        ({"image_data": IMAGES["n01"][:, :4]}, r"image_data is uint8 \[6, 4, 5, 3\]; expected"),
        ({"class_dict": [1, 2]}, "class_dict is list; expected a dict from names"),
        (
            {"class_dict": {1: list(range(6))}},
            "class_dict is a dict with the key 1; expected",
        ),
        (
            {"class_dict": {"n01": ["a"] * 6}},
            r"class_dict\['n01'\] is list .*expected a list of int",
        ),
        ({"class_dict": {"n01": 6}}, r"class_dict\['n01'\] is int '6'; expected a list of int"),
        ({"class_dict": {"n01": [0, 1]}}, r"class_dict\['n01'\]: has 2 indices; expected 6"),
        ({"class_dict": {"n01": [1, 2, 3, 4, 5, 6]}}, "indices from 1 to 6; expected 0 to 5"),
        ({"class_dict": {"n01": [0, 0, 1, 2, 3, 4]}}, "lists image 0 2 times"),
        ({"class_dict": {"n03": list(range(6))}}, "class n03, which another of the three"),
        ({"class_dict": {}}, "the pickles have 2 classes together; expected 3"),
    ],
)
def test_malformed_pickles(tmp_path, change, match):
    write_pickles(tmp_path / "mini-imagenet", change=lambda content: content.update(change))
    with pytest.raises(ValueError, match=match) as error:
        read(tmp_path)
    assert str(tmp_path / "mini-imagenet") in str(error.value)


class Run:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        Run(os.system, "touch ran"),
        Run(eval, "open('ran', 'w')"),
        Run(subprocess.run, ["touch", "ran"]),
        Run(np.load, "ran"),
        Run(getattr, "text", "format"),
        np.array([Run(os.system, "touch ran")], object),
        np.zeros(1, [("field", object)]),
        np.zeros(1),
    ],
)
def test_pickles_run_no_code(tmp_path, monkeypatch, call, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"image_data": call}, protocol))
    with pytest.raises(ValueError, match=r"file\.pkl: not a readable pickle of NumPy arrays"):
        restricted_pickle.read(tmp_path / "file.pkl")
    assert not os.path.exists("ran")


def test_what_is_no_pickle(tmp_path):
    path = tmp_path / "file.pkl"
    whole = pickle.dumps(IMAGES)
    for content in (b"", b"hello", whole[:-50], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.pkl: not a readable pickle"):
            restricted_pickle.read(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds <class 'list'>; expected a dict with image_data"):
        mini_imagenet._read_pickle(path, SMALL)
