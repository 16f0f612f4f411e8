"""States spread over devices: virtual ones, and those of two real processes."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType

import rgo_jax
import rgo_jax.nnx

ROOT = Path(__file__).parent.parent


def start(arguments, devices):
    """A Python of its own, because the number of devices is fixed when jax starts."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])  # after what the network layer prints


def run(program, devices):
    return finish(start(["-c", textwrap.dedent(program)], devices))


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_many_devices_and_processes_learn_what_one_device_learns():
    script = str(ROOT / "tests" / "many_devices.py")
    one = finish(start([script, "1", "0", "0"], devices=1))
    eight = finish(start([script, "1", "0", "0"], devices=8))
    port = str(free_port())
    pair = [start([script, "2", number, port], devices=4) for number in ("0", "1")]
    first, second = map(finish, pair)

    assert [r["devices"] for r in (one, eight, first, second)] == [1, 8, 8, 8]
    assert [r["rows on a device"] for r in (one, eight, first, second)] == [96, 12, 12, 12]
    assert first == second
    assert one["r"][1][0] > 0.9  # the first task is remembered
    assert one["trace"] < 90  # of 96: something is protected
    for other in (eight, first):
        for row, expected in zip(other["r"], one["r"], strict=True):
            np.testing.assert_allclose(row, expected, atol=0.002)
        np.testing.assert_allclose(other["trace"], one["trace"], rtol=1e-4)


def test_no_device_ever_holds_a_whole_projection():
    # d = 64, with 5 features, blocks of 16: a P or a share of it is told by its shape.
    texts = run(
        """
        import json, jax, jax.numpy as jnp, rgo_jax, rgo_jax.linen
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        layer, tx = rgo_jax.linen.Dense(40, use_bias=False), rgo_jax.rgo(0.1)
        params = layer.init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
        shapes = jax.eval_shape(tx.init, params)
        shardings = rgo_jax.projection_sharding(shapes, mesh, "model")
        init = jax.jit(tx.init, out_shardings=shardings)
        state = init(params)
        x = jax.device_put(jnp.ones((8, 64)), NamedSharding(mesh, PartitionSpec("data")))

        def gradient(params, state, x):
            def loss(params):
                return jnp.sum(layer.apply({"params": params}, x) ** 2)
            return rgo_jax.value_and_grad(loss, state)(params)[1]

        def end_of_task(state, v):
            def columns(v):
                return {"kernel": jnp.broadcast_to(v[:, None], (64, 40))}
            return rgo_jax.consolidate(state, columns, v, block_size=16)

        end_of_task = jax.jit(end_of_task, out_shardings=shardings)
        programs = [
            init.lower(params),
            jax.jit(gradient).lower(params, state, x),
            end_of_task.lower(state, jnp.ones((50, 64))),
        ]
        print(json.dumps([program.compile().as_text() for program in programs]))
        """,
        devices=8,
    )
    for text in texts:
        shapes = set(re.findall(r"f32\[\d+,\d+\]", text))
        assert "f32[16,64]" in shapes  # a quarter of P
        assert "f32[64,64]" not in shapes


@pytest.mark.slow
def test_seeds_spread_over_devices_give_what_one_device_gives():
    program = """
        import dataclasses, json, jax
        from benchmarks import data, presets
        from benchmarks.run import train
        from benchmarks.methods import METHODS
        config = presets.config(
            "permuted-digits", num_tasks=2, examples_per_task=200, epochs=1
        )
        run = train.run(config, METHODS["rgo"], data.load("digits"), seeds=range(3))
        print(json.dumps([run.losses.tolist(), run.r[:, 1].tolist()]))
        """
    (losses, r), (spread_losses, spread_r) = (run(program, devices) for devices in (1, 2))
    assert np.shape(spread_losses) == (3, 2)
    np.testing.assert_allclose(spread_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(spread_r, r, atol=0.004)


def one_device_mesh(*axes):
    return jax.make_mesh((1,) * len(axes), axes, axis_types=(AxisType.Auto,) * len(axes))


def test_shardings():
    mesh = one_device_mesh("data")
    params = {"kernel": jnp.zeros((4, 3)), "stack": jnp.zeros((6, 2)), "table": jnp.zeros((5, 2))}
    tx = rgo_jax.rgo(
        0.1,
        momentum=0.9,
        specs={
            "stack": rgo_jax.ProjectionSpec(blocks=3),
            "table": rgo_jax.ProjectionSpec(diagonal=True),
        },
    )
    shardings = rgo_jax.projection_sharding(jax.eval_shape(tx.init, params), mesh, "data")
    specs = {name: s.spec for name, s in shardings[0].projection.items()}
    axes = {"kernel": ("data", None), "stack": ("data", None, None), "table": ("data",)}
    assert {name: tuple(spec) for name, spec in specs.items()} == axes
    counts = (shardings[0].num_updates, shardings[0].num_skipped, shardings[0].energy)
    assert [tuple(s.spec) for s in jax.tree.leaves(counts)] == [()] * (1 + 3 + 3)
    assert {tuple(s.spec) for s in jax.tree.leaves(shardings[1])} == {()}
    state = jax.device_put(tx.init(params), shardings)
    assert state[0].projection["kernel"].sharding == shardings[0].projection["kernel"]


def test_rows_that_devices_do_not_divide_are_replicated():
    specs = run(
        """
        import json, jax, jax.numpy as jnp, rgo_jax
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        tx = rgo_jax.scale_by_rgo()
        state = tx.init({"even": jnp.zeros((8, 1)), "odd": jnp.zeros((27, 1))})
        state = jax.device_put(state, rgo_jax.projection_sharding(state, mesh, "data"))
        print(json.dumps({k: tuple(p.sharding.spec) for k, p in state.projection.items()}))
        """,
        devices=4,
    )
    assert specs == {"even": ["data", None], "odd": []}


def test_sharding_errors():
    mesh = one_device_mesh("data")
    state = rgo_jax.rgo(0.1).init({"kernel": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match="axis is 'model', but the mesh has the axes 'data'"):
        rgo_jax.projection_sharding(state, mesh, "model")
    with pytest.raises(ValueError, match="No RgoState"):
        rgo_jax.projection_sharding((), mesh, "data")
    explicit = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"'data' is of type .*Explicit.*axis_types=\(AxisType.Au"):
        rgo_jax.projection_sharding(state, explicit, "data")


@pytest.mark.slow
def test_fused_layers_in_shard_map_and_on_explicit_meshes():
    """Fewer rows than features, and more: as the plain layer, on devices that share the batch."""
    assert run(
        """
        import json, flax.linen as nn, jax, jax.numpy as jnp, numpy as np, rgo_jax, rgo_jax.linen
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from tests.gradients import projected

        def check(batch):
            x = jax.random.normal(jax.random.key(0), (batch, 6))
            ours, theirs = rgo_jax.linen.Dense(20), nn.Dense(20)
            params = ours.init(jax.random.key(1), x)["params"]
            tx = rgo_jax.scale_by_rgo(normalize=False)
            state = rgo_jax.rls_update(tx.init(params), params)

            def loss(params, model, x):
                return jnp.sum(jnp.sin(model.apply({"params": params}, x)))

            expected, _ = tx.update(jax.grad(loss)(params, theirs, x), state)
            everywhere, by_example = PartitionSpec(), PartitionSpec("data")
            results = []
            for kind in (AxisType.Auto, AxisType.Explicit):
                mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
                place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
                arguments = (*place((params, state), everywhere), place(x, by_example))
                function = lambda params, state, x: projected(loss, state, params, ours, x)
                results.append(jax.jit(function)(*arguments))
                if kind == AxisType.Auto:
                    specs = (everywhere, everywhere, by_example)
                    mapped = jax.shard_map(
                        function, mesh=mesh, in_specs=specs, out_specs=everywhere
                    )
                    results.append(mapped(*arguments))
            for result in results:
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
                    jax.device_get(result), jax.device_get(expected),
                )

        check(16)  # 4 rows a device, for 20 features
        check(400)
        print(json.dumps(True))
        """,
        devices=4,
    )


def cross_entropy(logits, y):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])


@pytest.mark.slow
def test_nnx_convolution_with_sharding_metadata():
    names = (None, None, None, "model")

    class Net(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), names)
            self.conv = nnx.Conv(3, 8, (3, 3), kernel_init=init, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.mean(nnx.relu(self.conv(x)), axis=(1, 2)))

    mesh = one_device_mesh("data", "model")
    x = jax.random.normal(jax.random.key(0), (3, 4, 6, 6, 3))
    y = jnp.zeros((3, 4), jnp.int32)
    with jax.set_mesh(mesh):
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, momentum=0.9), wrt=nnx.Param)
        shardings = rgo_jax.projection_sharding(optimizer.opt_state, mesh, "data")
        assert tuple(shardings[0].projection["conv"]["kernel"].spec) == ("data", None)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda model: cross_entropy(model(x[0]), y[0]))(model)
            optimizer.update(model, grads)

            def output(model, batch):
                return rgo_jax.curvature_output(model(batch[0]), batch[1])

            rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))

        step(model, optimizer)
        specs = nnx.get_partition_spec(nnx.state((model, optimizer)))
        constrained = jax.jit(lambda s: jax.lax.with_sharding_constraint(s, specs))
        constrained(nnx.state((model, optimizer)))  # ranks fit
    assert optimizer.opt_state[0].projection["conv"]["kernel"].shape == (27, 27)
    assert int(optimizer.opt_state[0].num_updates[...]) == 3


def test_linen_boxes_stay_on_parameters_and_off_projections():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer = nn.Dense(3, kernel_init=init)
    boxed = layer.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    tx = rgo_jax.rgo(0.1)
    state = tx.init(boxed)
    assert isinstance(boxed["kernel"], nn.Partitioned)
    assert state[0].projection["kernel"].shape == (4, 4)
    x, y = jnp.ones((2, 4)), jnp.zeros(2, jnp.int32)
    grads = jax.grad(lambda p: cross_entropy(layer.apply({"params": p}, x), y))(boxed)
    state = rgo_jax.rls_update(state, grads)
    updates, _ = tx.update(grads, state, boxed)
    assert isinstance(updates["kernel"], nn.Partitioned)
    plain = nn.unbox(grads)
    expected, _ = tx.update(plain, rgo_jax.rls_update(tx.init(nn.unbox(boxed)), plain))
    np.testing.assert_array_equal(updates["kernel"].value, expected["kernel"])
    assert rgo_jax.projection_memory(boxed).keys() == {"kernel", "bias"}
