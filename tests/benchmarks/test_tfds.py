"""MNIST and CIFAR-100 as tensorflow-datasets prepares them, from downloads made here."""

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
from benchmarks.data import tfds_source

pytestmark = pytest.mark.usefixtures("own_cache")
rng = np.random.default_rng(0)


def pairs(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


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


def needs_real(name):
    return pytest.mark.skipif(
        not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), name)),
        reason=f"needs the real {name}: set TFDS_DATA_DIR to a folder where TFDS prepared it",
    )


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

    @pytest.mark.slow
    @needs_real("mnist")
    def test_real_mnist(self):
        mnist = data.load("mnist")
        assert mnist.x_train.shape == (60_000, 28, 28)
        assert mnist.x_test.shape == (10_000, 28, 28)
        assert np.bincount(mnist.y_test).tolist() == [
            980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
        ]  # fmt: skip
        np.testing.assert_allclose(mnist.x_train.mean() / 255, 0.1307, atol=1e-4)

    @pytest.mark.slow
    @needs_real("cifar100")
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
        # The planes of an image are one scene in three colours, and so are neighbouring pixels.
        images = cifar100.x_test[:500]
        planes = [np.corrcoef(image.reshape(-1, 3).T)[0, 2] for image in images]
        assert np.mean(planes) > 0.7

        def neighbours(images):
            return np.corrcoef(images[:, 1:].ravel(), images[:, :-1].ravel())[0, 1]

        assert neighbours(cifar100.scrambled().x_test[:500]) < 0.8 < 0.9 < neighbours(images)
        # In mixed order: every class is held out, if not equally often.
        held_out = np.bincount(cifar100.validation().y_test, minlength=100)
        assert 50 < held_out.min() < held_out.max() < 120
