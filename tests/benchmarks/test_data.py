import numpy as np
import pytest

from benchmarks import data
from benchmarks.data import sources

pytestmark = pytest.mark.usefixtures("own_cache")
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


def test_scrambled_is_what_a_loader_makes_that_takes_planes_for_pixels():
    rng = np.random.default_rng(0)
    files = rng.integers(0, 256, (5, 3 * 4 * 4), dtype=np.uint8)  # red, green, blue
    right = files.reshape(5, 3, 4, 4).transpose(0, 2, 3, 1)
    wrong = files.reshape(5, 4, 4, 3)
    labels = np.arange(5, dtype=np.int32) % 2
    scrambled = data.Dataset("d", right[:3], labels[:3], right[3:], labels[3:]).scrambled()
    np.testing.assert_array_equal(scrambled.x_train, wrong[:3])
    np.testing.assert_array_equal(scrambled.x_test, wrong[3:])
    with pytest.raises(ValueError, match="--scrambled is for colour images, but those of d have"):
        data.Dataset(
            "d", right[:3, :, :, 0], labels[:3], right[3:, :, :, 0], labels[3:]
        ).scrambled()


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
