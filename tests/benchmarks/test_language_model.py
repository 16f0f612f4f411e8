"""Texts that come with Python, and the transformer that learns them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.language import model, texts

LENGTH = 33
NET = model.LanguageModel(length=8, width=16, heads=2, blocks=1)
TOKENS = jax.random.randint(jax.random.key(0), (3, 8), 0, 256)
PARAMS = NET.init(jax.random.key(1), TOKENS)["params"]


@pytest.mark.parametrize("kind", texts.KINDS)
def test_windows_are_of_one_kind(kind):
    text = texts.load(kind, LENGTH)
    assert text.train.dtype == text.test.dtype == np.uint8
    assert text.train.shape[1:] == text.test.shape[1:] == (LENGTH,)
    assert len(text.train) > 5 * len(text.test) > 0
    again = texts.load(kind, LENGTH)
    np.testing.assert_array_equal(text.train, again.train)


def test_held_out_windows_are_of_other_documents():
    # Of JSON each document has characters of its own, which their codes tell.
    def codes(windows):
        joined = b"\n".join(windows[i].tobytes() for i in range(len(windows))).decode("ascii")
        return set(re.findall(r'"code": (\d+),', joined))

    text = texts.load("json", 257)
    train, test = codes(text.train), codes(text.test)
    assert train
    assert test
    assert not train & test


def test_json_is_json():
    documents = list(texts.KINDS["json"]())
    assert json.loads(documents[0])[0]["name"] == "space"


def test_too_little_text_is_refused(monkeypatch):
    monkeypatch.setitem(texts.KINDS, "english", lambda: ["a few words"])
    with pytest.raises(ValueError, match="12 bytes of english; expected at least 330000"):
        texts.load("english", LENGTH)


def test_a_byte_is_predicted_from_those_before_it_only():
    logits = NET.apply({"params": PARAMS}, TOKENS)
    changed = NET.apply({"params": PARAMS}, TOKENS.at[:, 5].add(1) % 256)
    np.testing.assert_allclose(changed[:, :5], logits[:, :5], atol=1e-5)
    assert jnp.all(jnp.any(jnp.abs(changed[:, 5:] - logits[:, 5:]) > 1e-3, axis=-1))


def test_adapters_start_with_no_change_and_change_each_kernel_of_the_blocks():
    adapters = model.init_adapters(PARAMS, 2, jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, model.add_adapters(PARAMS, adapters), PARAMS)
    ones = jax.tree.map(jnp.ones_like, adapters)
    changed = model.add_adapters(PARAMS, ones)
    names = set()
    for path, difference in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: a - b, changed, PARAMS)
    ):
        if jnp.any(difference != 0):
            np.testing.assert_allclose(difference, 2, atol=1e-5)
            names.add(jax.tree_util.keystr(path, simple=True, separator="/"))
    attention = [f"block_0/attention/{n}/kernel" for n in ("query", "key", "value", "out")]
    assert names == {*attention, "block_0/up/kernel", "block_0/down/kernel"} == set(adapters)
    assert adapters["block_0/attention/query/kernel"]["up"].shape == (2, 16)
    assert adapters["block_0/attention/out/kernel"]["down"].shape == (16, 2)
