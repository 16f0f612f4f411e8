"""The wheel, in an environment with nothing but what it requires."""

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USES = """
import importlib.util
import jax, jax.numpy as jnp, optax
from flax import nnx
import rgo_jax, rgo_jax.linen, rgo_jax.nnx
from rgo_jax import baselines

for name in ("benchmarks", "tests", "sklearn", "tensorflow_datasets", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name

x, tx = jnp.ones((2, 4)), rgo_jax.rgo(0.1)

model = rgo_jax.linen.Dense(3)
params = model.init(jax.random.key(0), x)
def loss(params):
    return (model.apply(params, x) ** 2).mean()
state = tx.init(params)
before, grads = jax.jit(lambda p, s: rgo_jax.value_and_grad(loss, s)(p))(params, state)
updates, state = tx.update(grads, state, params)
assert loss(optax.apply_updates(params, updates)) < before

model = rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
def loss(model):
    return (model(x) ** 2).mean()
before, grads = rgo_jax.nnx.value_and_grad(loss, optimizer)(model)
optimizer.update(model, grads)
assert loss(model) < before

y = jnp.array([0, 2])
method = baselines.ewc(lambda params, x, task_id: x @ params, optax.sgd(0.1))
r, state = baselines.train_sequence(method, jnp.zeros((4, 3)), [(x, y, x, y)], batch_size=2)
assert r.shape == (1, 1)

print(rgo_jax.__file__)
"""


@pytest.mark.slow
def test_wheel_alone_trains_a_step(tmp_path):
    def output_of(*command):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def uv(*command):
        output_of(sys.executable, "-m", "uv", *command)

    uv("build", "--quiet", "--wheel", "--out-dir", "dist", str(ROOT))
    (wheel,) = tmp_path.glob("dist/*.whl")
    packages = {path.split("/")[0] for path in zipfile.ZipFile(wheel).namelist()}
    assert packages == {"rgo_jax", f"rgo_jax-{version('rgo_jax')}.dist-info"}

    fresh = tmp_path / "fresh"
    uv("venv", "--quiet", "--python", sys.executable, str(fresh))
    # The versions that the other tests run on.
    tested = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "flax", "optax")]
    uv("pip", "install", "--quiet", "--python", str(fresh), str(wheel), *tested)
    # Isolated, so that the checkout is not found in its place.
    found = output_of(str(next(fresh.glob("[bS]*/python*"))), "-I", "-c", USES)
    assert Path(found.strip()).is_relative_to(fresh)
