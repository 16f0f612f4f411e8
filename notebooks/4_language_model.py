# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A language model learns one text after another
#
# Fine-tune a transformer on one kind of text and it forgets the others. This notebook trains a
# small one on English, then on Python, then on JSON, with Adam and with RGO, in full and through
# low-rank adapters (LoRA). No old text is kept. It takes about two minutes on a CPU, with nothing
# to download, and runs on a GPU or TPU if there is one.

# %%
# Installs rgo_jax if it is missing: from what SOURCE names, such as git+https://..., from a wheel
# beside this notebook, or from the checkout it is in. A jax that is new enough stays as it is.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ""  # @param {type:"string"}
if importlib.util.find_spec("rgo_jax") is None:
    wheels = sorted(pathlib.Path().glob("rgo_jax-*.whl"), key=lambda p: -p.stat().st_mtime)
    checkouts = [p for p in map(pathlib.Path, (".", "..")) if (p / "rgo_jax").is_dir()]
    found = [source for source in (SOURCE, *wheels, *checkouts) if source]
    assert found, "Upload a wheel of rgo_jax beside this notebook, or set SOURCE to a git address."
    source = found[0] if found[0] == SOURCE else str(found[0].resolve())
    needed = [source, "matplotlib"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)

# %%
# %matplotlib inline
import json
import pathlib
import pydoc_data.topics
import sysconfig
import unicodedata

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import rgo_jax

# %% [markdown]
# ## Three texts
#
# All come with Python. The model reads bytes, in windows of 64. The last tenth of each text
# is held out.

# %%
LENGTH = 64


def files(folder, pattern):
    return [
        path.read_text(encoding="utf-8") for path in sorted(pathlib.Path(folder).rglob(pattern))
    ]


def character(code):
    c = chr(code)
    return {
        "code": code,
        "name": unicodedata.name(c, "").lower(),
        "category": unicodedata.category(c),
        "decomposition": unicodedata.decomposition(c).split(),
    }


documents = {
    "English": [text for _, text in sorted(pydoc_data.topics.topics.items())],
    "Python": files(pathlib.Path(sysconfig.get_path("stdlib")) / "json", "*.py")
    + files(pathlib.Path(sysconfig.get_path("stdlib")) / "asyncio", "*.py"),
    "JSON": [json.dumps(character(code), indent=1) for code in range(32, 2000)],
}


def windows(text):
    data = np.frombuffer("\n".join(text).encode()[:200_000], np.uint8)
    data = data[: len(data) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    return jnp.asarray(data[: len(data) * 9 // 10], int), jnp.asarray(data[-256:], int)


texts = {name: windows(text) for name, text in documents.items()}
print(bytes(np.asarray(texts["Python"][1][3], np.uint8)).decode())


# %% [markdown]
# ## The model
#
# A transformer as anyone would write it, from Flax's own layers.


# %%
class Transformer(nn.Module):
    width: int = 64
    heads: int = 4
    blocks: int = 2

    @nn.compact
    def __call__(self, tokens):
        positions = self.param("positions", nn.initializers.normal(0.02), (LENGTH, self.width))
        x = nn.Embed(256, self.width, name="embedding")(tokens) + positions
        mask = nn.make_causal_mask(tokens)
        for i in range(self.blocks):
            inputs = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")(
                inputs, mask=mask
            )
            inner = nn.gelu(nn.Dense(4 * self.width, name=f"up_{i}")(nn.LayerNorm()(x)))
            x += nn.Dense(self.width, name=f"down_{i}")(inner)
        return nn.Dense(256, name="head")(nn.LayerNorm()(x))


model = Transformer()


def loss(params, batch):
    logits = model.apply({"params": params}, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def trainer(tx, steps, of_params=lambda params: params):
    """Compiles the steps of one task; ``of_params``: from what is trained to the model's."""

    @jax.jit
    def train(params, state, data, key):
        def step(carry, key):
            params, state = carry
            batch = data[jax.random.randint(key, (16,), 0, len(data))]
            grads = jax.grad(lambda params: loss(of_params(params), batch))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(key, steps))[0]

    return train


@jax.jit
def perplexity(params, data):
    return jnp.exp(loss(params, data))


def perplexities(params):
    return [float(perplexity(params, held_out)) for _, held_out in texts.values()]


# %% [markdown]
# First the model learns English. Perplexity is the number of bytes that it cannot tell apart, on
# average: 256 before training, 1 for a perfect model.

# %%
STEPS = 250
tx = optax.adam(optax.cosine_decay_schedule(3e-3, 3 * STEPS))
params = model.init(jax.random.key(0), texts["English"][1][:1, :-1])["params"]
english, _ = trainer(tx, 3 * STEPS)(params, tx.init(params), texts["English"][0], jax.random.key(1))
dict(zip(texts, map(round, perplexities(english)), strict=True))

# %% [markdown]
# ## Adam
#
# Python, then JSON. Each row of the picture is the model after one text, each column a text.

# %%
schedule = optax.cosine_decay_schedule(1e-3, STEPS)


def show(matrix, title):
    figure, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    axes.imshow(np.log(matrix), cmap="viridis_r", vmin=np.log(3), vmax=np.log(60))
    for (row, column), value in np.ndenumerate(matrix):
        color = "white" if value > 12 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(3), texts)
    axes.set_yticks(range(3), [f"after {name}" for name in texts])
    axes.set_title(title)
    plt.close(figure)
    return figure


def with_adam(trained, of_params=lambda params: params):
    """The perplexities after each text."""
    tx = optax.adam(schedule)
    train = trainer(tx, STEPS, of_params)
    matrix = [perplexities(of_params(trained))]
    for name in ("Python", "JSON"):
        trained, _ = train(trained, tx.init(trained), texts[name][0], jax.random.key(2))
        matrix.append(perplexities(of_params(trained)))
    return np.array(matrix)


show(with_adam(english), "Perplexity, Adam")

# %% [markdown]
# ## RGO
#
# Four things change.
#
# * RGO comes after Adam, so that Adam cannot scale protected directions up again. The trace rule,
#   which keeps steps as large as without RGO, is left out: here it forgets more than it learns.
# * RGO is told how parameters are laid out, such as query, key and value kernels `[width, heads,
#   head width]`, or an embedding, whose P is a diagonal. `infer_specs` reads it from the model.
# * After each text `consolidate` folds it into P. Under layer normalisation the columns of a
#   gradient cancel, so `columns="signs"`. A relative `alpha` fits a loss of any scale.
# * Before each text `next_task` sets Adam back, and keeps P.


# %%
def forward(params, tokens):
    return model.apply({"params": params}, tokens)


specs = rgo_jax.infer_specs(forward, english, texts["English"][1][:1, :-1])
memory = sum(rgo_jax.projection_memory(english, specs=specs).values())
size = sum(leaf.nbytes for leaf in jax.tree.leaves(english)) / 2**20
print(f"parameters: {size:.2f} MiB, projections: {memory:.2f} MiB")


def with_rgo(trained, specs, of_params=lambda params: params, protect_english=True):
    """The perplexities after each text."""
    tx = optax.chain(
        optax.scale_by_adam(),
        rgo_jax.scale_by_rgo(specs=specs, normalize=False),
        optax.scale_by_learning_rate(schedule),
    )
    train = trainer(tx, STEPS, of_params)

    @jax.jit
    def end_of_text(state, trained, data):
        batches = jax.random.permutation(jax.random.key(3), data)[: 100 * 16].reshape(100, 16, -1)

        def output(trained, batch):
            logits = forward(of_params(trained), batch[:, :-1])
            return rgo_jax.curvature_output(logits, batch[:, 1:])

        return rgo_jax.consolidate(
            state, output, batches, trained, alpha=0.03, relative_alpha=True, columns="signs"
        )

    state = tx.init(trained)
    matrix = [perplexities(of_params(trained))]
    if protect_english:
        state = end_of_text(state, trained, texts["English"][0])
    for name in ("Python", "JSON"):
        state = rgo_jax.next_task(tx, state, trained)
        trained, state = train(trained, state, texts[name][0], jax.random.key(2))
        matrix.append(perplexities(of_params(trained)))
        state = end_of_text(state, trained, texts[name][0])
    return np.array(matrix)


show(with_rgo(english, specs), "Perplexity, RGO")

# %% [markdown]
# RGO learns a little less of each new text, and keeps most of the old ones.
#
# ## Low-rank adapters
#
# LoRA trains two small factors, `down` and `up`, for each kernel and leaves the model alone. That
# does not prevent forgetting. Adapters are parameters like others, so RGO takes them as they are.
# One thing differs: before the first new text `up` is zero, so there is nothing to protect yet.

# %%
RANK = 16


def adapters_for(params):
    adapters = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel") and not name.startswith("head"):
            # The first axis is fan-in, but for the outputs of attention.
            d = leaf.size // leaf.shape[-1] if "out" in name else leaf.shape[0]
            key = jax.random.fold_in(jax.random.key(4), len(adapters))
            down = jax.random.normal(key, (d, RANK)) / d**0.5
            adapters[name] = {"down": down, "up": jnp.zeros((RANK, leaf.size // d))}
    return adapters


def adapted(adapters):
    def add(path, leaf):
        adapter = adapters.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if adapter is None:
            return leaf
        return leaf + (adapter["down"] @ adapter["up"]).reshape(leaf.shape)

    return jax.tree.map_with_path(add, english)


adapters = adapters_for(english)
share = sum(x.size for x in jax.tree.leaves(adapters)) / sum(
    x.size for x in jax.tree.leaves(english)
)
print(f"adapters: {share:.0%} of the parameters")
show(with_adam(adapters, adapted), "Perplexity, LoRA with Adam")

# %%
show(with_rgo(adapters, None, adapted, protect_english=False), "Perplexity, LoRA with RGO")

# %% [markdown]
# Adapters have few directions, and protection uses them up: with a lower rank the last text is
# learned less.
#
# The same with other methods beside, three seeds and a larger model:
# `python -m benchmarks language` in a checkout.
