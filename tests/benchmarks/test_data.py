import contextlib
import gzip
import io
import os
import struct
import tarfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import sources, tfds_source

rng = np.random.default_rng(0)


def arrays(n_train=12, n_test=6, dtype=np.uint8):
    def images(n):
        x = rng.integers(0, 256, (n, 5, 4))
        return x.astype(dtype) if dtype == np.uint8 else (x / 255).astype(dtype)

    return {
        "x_train": images(n_train),
        "y_train": rng.permutation(np.arange(n_train) % 3),
        "x_test": images(n_test),
        "y_test": rng.integers(0, 3, n_test),
    }


def pairs(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RGO_JAX_CACHE", str(tmp_path / "cache"))


def test_digits():
    digits = data.load("digits")
    assert digits.x_train.shape == (1297, 8, 8)
    assert digits.x_test.shape == (500, 8, 8)
    assert digits.num_classes == 10
    assert digits.x_train.dtype == np.uint8
    assert digits.x_train.max() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz(tmp_path, dtype):
    given = arrays(dtype=dtype)
    given["x_train"] = given["x_train"][..., None]  # one channel is the same as none
    np.savez(tmp_path / "mine.npz", **given)
    loaded = data.load(str(tmp_path / "mine.npz"))
    assert loaded.name == "mine.npz"
    assert loaded.x_train.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_allclose(loaded.x_train, given["x_train"][..., 0], rtol=1e-6)
    np.testing.assert_array_equal(loaded.y_test, given["y_test"])


def test_npz_in_colour_with_superclasses(tmp_path):
    given = arrays() | {"superclasses": np.array([1, 0, 1])}
    given["y_train"][0] = 2
    for name in ("x_train", "x_test"):
        given[name] = np.stack([given[name]] * 3, axis=-1)
    np.savez(tmp_path / "mine.npz", **given)
    loaded = data.load(str(tmp_path / "mine.npz"))
    np.testing.assert_array_equal(loaded.x_train, given["x_train"])
    np.testing.assert_array_equal(loaded.superclasses, [1, 0, 1])
    assert loaded.superclasses.dtype == np.int32
    np.testing.assert_array_equal(loaded.validation().superclasses, [1, 0, 1])


def test_validation_holds_out_training_data():
    dataset = data.Dataset("d", **arrays())
    assert dataset.superclasses is None
    held_out = dataset.validation()
    np.testing.assert_array_equal(held_out.x_train, dataset.x_train[:10])
    np.testing.assert_array_equal(held_out.x_test, dataset.x_train[10:])
    np.testing.assert_array_equal(held_out.y_test, dataset.y_train[10:])


def test_the_first_training_images():
    dataset = data.Dataset("d", **arrays())
    few = dataset.first(6)
    np.testing.assert_array_equal(few.x_train, dataset.x_train[:6])
    np.testing.assert_array_equal(few.y_train, dataset.y_train[:6])
    np.testing.assert_array_equal(few.x_test, dataset.x_test)
    assert few.fingerprint() != dataset.fingerprint()
    for whole in (dataset.first(None), dataset.first(99)):
        assert whole.fingerprint() == dataset.fingerprint()
    np.testing.assert_array_equal(few.validation().x_test, dataset.x_train[5:6])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x_test": None}, r"has no x_test \(it has .*\); expected the arrays"),
        ({"x_train": np.zeros((12, 5), np.uint8)}, r"x_train has shape \(12, 5\); expected grey"),
        ({"x_train": np.zeros((12, 5, 4, 2), np.uint8)}, r"\(12, 5, 4, 2\); expected grey"),
        ({"x_train": np.zeros((12, 5, 4, 3), np.uint8)}, r"\(5, 4, 3\) and x_test of \(5, 4\)"),
        ({"x_train": np.zeros((0, 5, 4), np.uint8)}, "n at least 1"),
        ({"x_train": np.zeros((12, 5, 4), np.int32)}, "dtype int32; expected uint8"),
        ({"x_train": np.full((12, 5, 4), np.nan)}, "not finite"),
        ({"x_train": np.full((12, 5, 4), 255.0)}, "Divide by 255"),
        ({"x_train": np.zeros((12, 4, 4), np.uint8)}, r"\(4, 4\) and x_test of \(5, 4\)"),
        ({"x_train": np.zeros((12, 5, 4))}, "x_train has dtype float32 and x_test uint8"),
        ({"y_train": np.zeros(11, int)}, r"y_train has shape \(11,\); expected \(12,\)"),
        ({"y_train": np.zeros(12)}, "y_train has dtype float64; expected integers"),
        ({"y_train": np.full(12, -1)}, "has the label -1"),
        ({"y_train": np.full(12, 2**63, np.uint64)}, "has the label 9223372036854775808; expected"),
        ({"superclasses": np.zeros(9, int)}, r"superclasses has shape \(9,\); expected \(3,\)"),
        ({"superclasses": np.zeros(3)}, "superclasses has dtype float64; expected integers"),
        ({"superclasses": np.array([0, 2, 0])}, "superclasses has the values 0, 2; expected all"),
    ],
)
def test_malformed_npz(tmp_path, change, match):
    path = tmp_path / "bad.npz"
    np.savez(path, **{k: v for k, v in (arrays() | change).items() if v is not None})
    with pytest.raises(ValueError, match=match) as error:
        data.load(str(path))
    assert str(path) in str(error.value)


def test_npz_that_is_not_one(tmp_path):
    text, pickled, cut = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    text.write_text("hello")
    np.savez(pickled, **(arrays() | {"x_train": np.array([{}], object)}))
    np.savez(cut, **arrays())
    cut.write_bytes(cut.read_bytes()[:200])
    for path in (text, pickled, cut):
        with pytest.raises(ValueError, match=r"not a readable \.npz file"):
            data.load(str(path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.load(str(tmp_path / "absent.npz"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RGO_JAX_CACHE", str(tmp_path / "file"))
    decoded = {"x_train": np.zeros((2**20, 3), np.uint8)}
    with pytest.raises(ValueError, match=r"file/key\.npz: cannot.*Set RGO_JAX_CACHE.*3 MiB"):
        sources._load_cached("name", "key", lambda: decoded)


def test_unknown_name():
    with pytest.raises(ValueError, match="Unknown dataset 'imagenet'; expected one of digits, mn"):
        data.load("imagenet")


def write_cifar100(path, splits, fine_names=100):
    """An archive like CIFAR-100's of (images, fine labels, coarse labels)."""
    contents = {
        "fine_label_names.txt": b"".join(b"fine%d\n" % i for i in range(fine_names)),
        "coarse_label_names.txt": b"".join(b"coarse%d\n" % i for i in range(20)),
    }
    for split, (images, fine, coarse) in splits.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([coarse[:, None], fine[:, None], planes], axis=1)
        contents[f"{split}.bin"] = records.astype(np.uint8).tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


class TestTfds:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        """What is put here is downloaded, in place of the network."""
        tfds = pytest.importorskip("tensorflow_datasets")
        folder = tmp_path / "downloads"
        folder.mkdir()

        class Reached:
            def close(self):
                pass

        monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Reached())
        monkeypatch.setattr(
            tfds.download.DownloadManager,
            "download",
            lambda self, urls: {name: folder / name for name in urls},
        )
        return folder

    @pytest.fixture
    def downloads(self, folder):
        """The four files of MNIST, small."""
        content = {}
        for split, count in (("train", 7), ("test", 3)):
            content[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
            content[f"{split}_labels"] = rng.integers(0, 10, count).astype(np.uint8)
        for name, array in content.items():
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
        return content

    @pytest.fixture
    def cifar100(self):
        """A few examples of each split: images, fine labels, coarse labels."""
        splits = {}
        for split, count in (("train", 110), ("test", 20)):
            fine = rng.permutation(np.arange(count) % 100)
            splits[split] = (rng.integers(0, 256, (count, 32, 32, 3)), fine, (fine * 7) % 20)
        return splits

    def test_prepares_without_tensorflow_reads_and_caches(self, tmp_path, downloads, monkeypatch):
        directory = str(tmp_path / "tfds")
        mnist = data.load("mnist", data_dir=directory)
        for split in ("train", "test"):
            # TFDS shuffles when it writes; each image must keep its label.
            expected = pairs(downloads[f"{split}_images"], downloads[f"{split}_labels"])
            assert pairs(getattr(mnist, f"x_{split}"), getattr(mnist, f"y_{split}")) == expected
        assert mnist.name == "mnist"

        # The second time the arrays come from the cache: nothing is decoded.
        def refuse(*args):
            raise AssertionError("decoded again")

        with monkeypatch.context() as patch:
            patch.setattr(tfds_source.Source, "read", refuse)
            again = data.load("mnist", data_dir=directory)
        np.testing.assert_array_equal(again.x_train, mnist.x_train)

        # A cache cut short by a kill is made anew.
        (cache,) = data.cache_dir().glob("mnist-*.npz")
        cache.write_bytes(cache.read_bytes()[:100])
        third = data.load("mnist", data_dir=directory)
        np.testing.assert_array_equal(third.x_train, mnist.x_train)

    def test_a_damaged_dataset(self, tmp_path, downloads, monkeypatch):
        """Whatever is wrong with its files, the error names its folder and tells to delete it."""
        data.load("mnist", data_dir=str(tmp_path / "tfds"))
        (folder,) = (tmp_path / "tfds" / "mnist").iterdir()
        errors = []
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            whole = path.read_bytes()
            lies = [whole.replace(b'"7"', b'"999999999999"'), whole.replace(b"label", b"lapel")]
            for content in (b"", b"{}", b"[]", b"\xff" * 50, whole[: len(whole) // 2], *lies):
                if content == whole:
                    continue
                for cache in data.cache_dir().glob("*"):
                    cache.unlink()
                path.write_bytes(content)
                with contextlib.suppress(RuntimeError):  # as if it were not prepared
                    try:
                        data.load("mnist", data_dir=str(tmp_path / "tfds"))
                    except ValueError as error:
                        errors.append(str(error))
            path.write_bytes(whole)
        assert len(errors) > 10
        for error in errors:
            assert str(folder.parent) in error
            assert "Delete the folder and run again" in error

    def test_cifar100_without_tensorflow(self, tmp_path, folder, cifar100):
        write_cifar100(folder / "archive", cifar100)
        first = data.load("cifar100", data_dir=str(tmp_path / "one"))
        for split, (images, fine, _) in cifar100.items():
            loaded = getattr(first, f"x_{split}"), getattr(first, f"y_{split}")
            assert loaded[0].dtype == np.uint8
            assert pairs(*loaded) == pairs(images.astype(np.uint8), fine)
        assert first.superclasses.tolist() == [(7 * i) % 20 for i in range(100)]
        assert first.superclasses.dtype == np.int32
        again = data.load("cifar100", data_dir=str(tmp_path / "one"))
        for one, other in zip(first[1:], again[1:], strict=True):
            np.testing.assert_array_equal(one, other)

        # Prepared from other files in another order, it is the same set in the same order.
        (data.cache_dir() / "cifar100-3.0.2.npz").unlink()
        write_cifar100(
            folder / "archive",
            {split: [array[::-1] for array in arrays] for split, arrays in cifar100.items()},
        )
        other = data.load("cifar100", data_dir=str(tmp_path / "two"))
        np.testing.assert_array_equal(first.x_train, other.x_train)
        np.testing.assert_array_equal(first.y_train, other.y_train)

    def test_a_class_in_two_superclasses(self, tmp_path, folder, cifar100):
        cifar100["test"][2][cifar100["test"][1] == 3] = 5
        write_cifar100(folder / "archive", cifar100)
        with pytest.raises(ValueError, match=r"class 3 have the coarse labels \[1, 5\]; expected"):
            data.load("cifar100", data_dir=str(tmp_path))

    def test_checksums_are_known_and_enforced(self, monkeypatch, tmp_path):
        tfds = pytest.importorskip("tensorflow_datasets")
        known = tfds.download.checksums.get_all_url_infos()
        for recipe in tfds_source._RECIPES.values():
            assert set(recipe.urls.values()) <= set(known)
        # A URL that TFDS has no checksum of is refused before anything is downloaded.
        unknown = tfds_source._RECIPES["cifar100"]._replace(urls={"archive": "http://127.0.0.1/x"})
        monkeypatch.setitem(tfds_source._RECIPES, "cifar100", unknown)
        monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO())
        with pytest.raises(Exception, match="Missing checksums url"):
            data.load("cifar100", data_dir=str(tmp_path))

    def test_archives_that_are_not(self, tmp_path):
        path = tmp_path / "archive"
        path.write_bytes(b"<html>")
        with pytest.raises(ValueError, match=r"archive: not a readable \.tar\.gz with a, b"):
            tfds_source.read_tar(path, ["a", "b"])
        write_cifar100(path, {})
        with pytest.raises(ValueError, match=r"train\.bin.*not found"):
            tfds_source.read_tar(path, ["cifar-100-binary/train.bin"])
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match="Delete it and run again"):
            tfds_source.read_tar(path, ["cifar-100-binary/train.bin"])
        with pytest.raises(
            ValueError, match=r"train\.bin has 5 bytes; expected a multiple of 3074"
        ):
            next(tfds_source._cifar100_examples(path, "train", b"12345"))

    def test_without_a_network_the_error_comes_fast_and_says_what_to_do(
        self, tmp_path, monkeypatch
    ):
        pytest.importorskip("tensorflow_datasets")

        def unreachable(*args, **kwargs):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(urllib.request, "urlopen", unreachable)
        started = time.perf_counter()
        with pytest.raises(RuntimeError, match=r"not prepared.*TFDS_DATA_DIR.*permuted-digits"):
            data.load("mnist", data_dir=str(tmp_path))
        assert time.perf_counter() - started < 30

    def test_idx_files_that_are_not(self, tmp_path):
        path = tmp_path / "file.gz"
        path.write_bytes(b"<html>")
        with pytest.raises(ValueError, match=r"not a readable \.gz of an idx file"):
            tfds_source.read_idx(path)
        path.write_bytes(gzip.compress(b"<html>"))
        with pytest.raises(ValueError, match="not with the header of an array of bytes"):
            tfds_source.read_idx(path)
        path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])))
        with pytest.raises(ValueError, match=r"its header promises \(9,\), but 2 bytes or"):
            tfds_source.read_idx(path)

    @pytest.mark.skipif(
        not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")),
        reason="needs the real MNIST: set TFDS_DATA_DIR to a folder where TFDS prepared it",
    )
    def test_real_mnist(self):
        mnist = data.load("mnist")
        assert mnist.x_train.shape == (60_000, 28, 28)
        assert mnist.x_test.shape == (10_000, 28, 28)
        assert np.bincount(mnist.y_test).tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
        ]  # fmt: skip
        np.testing.assert_allclose(mnist.x_train.mean() / 255, 0.1307, atol=1e-4)

    @pytest.mark.skipif(
        not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar100")),
        reason="needs the real CIFAR-100: set TFDS_DATA_DIR to a folder where TFDS prepared it",
    )
    def test_real_cifar100(self):
        cifar100 = data.load("cifar100")
        assert cifar100.x_train.shape == (50_000, 32, 32, 3)
        assert cifar100.x_test.shape == (10_000, 32, 32, 3)
        assert np.bincount(cifar100.y_train).tolist() == [500] * 100
        assert np.bincount(cifar100.y_test).tolist() == [100] * 100
        np.testing.assert_allclose(
            cifar100.x_train.mean((0, 1, 2)) / 255, [0.5071, 0.4865, 0.4409], atol=1e-4
        )
        # Apples, mushrooms, oranges, pears and sweet peppers: fruit and vegetables.
        assert np.flatnonzero(cifar100.superclasses == 4).tolist() == [0, 51, 53, 57, 83]
        assert np.bincount(cifar100.superclasses).tolist() == [5] * 20
        # In mixed order: every class is held out, if not equally often.
        held_out = np.bincount(cifar100.validation().y_test, minlength=100)
        assert 50 < held_out.min() < held_out.max() < 120
