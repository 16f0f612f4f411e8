def head_network(policy):
    return FeedForward(convs=(), hidden=(8,), num_classes=3, num_tasks=4, head=policy, fel=True)


@pytest.mark.parametrize("policy", ["shared", "frozen", "per_task"])
def test_head_policies(policy):
    network = head_network(policy)
    x = jax.random.normal(jax.random.key(0), (5, 6))
    params = network.init(jax.random.key(1), x, 0)["params"]

    def grads(task):
        return jax.grad(lambda p: jnp.sum(network.apply({"params": p}, x, task) ** 2))(params)

    def moved(task):
        return [bool(np.any(np.asarray(g) != 0)) for g in jax.tree.leaves(grads(task)["head"])]

    assert all(moved(0))
    if policy == "frozen":
        assert not any(moved(1))
        assert np.any(np.asarray(jax.tree.leaves(grads(1)["Dense_0"])[0]) != 0)
    else:
        assert all(moved(1))
    if policy == "per_task":
        gradient = np.asarray(grads(2)["head"]["kernels"])
        assert gradient.shape == (4, 8, 3)
        assert [bool(np.any(g != 0)) for g in gradient] == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counted by hand from the layers, with one head of 10 classes.
    [
        ("mlp", 784 * 256 + 256 * 256 + 256 * 10 + 522),
        (
            "lenet-5",
            25 * 3 * 20 + 25 * 20 * 50 + 3200 * 800 + 800 * 500 + 500 * 10 + 70 + 1300 + 10,
        ),
        (
            "alexnet-6",
            16 * 3 * 64 + 9 * 64 * 128 + 4 * 128 * 256
            + 4096 * 2048 + 2048 * 2048 + 2048 * 10 + 448 + 4096 + 10,
        ),
        (
            "alexnet-7",
            25 * 3 * 64 + 16 * 64 * 128 + 2 * 9 * 128**2
            + 3200 * 2048 + 2048 * 2048 + 2048 * 10 + 448 + 4096 + 10,
        ),
        (
            "vgg-13",
            9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
            + 5120 + 2 * (64 + 128 + 256 + 2 * 512) + 10,
        ),
        (
            "vgg-11",
            9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
            + 5120 + 64 + 128 + 2 * 256 + 4 * 512 + 10,
        ),
        (
            "resnet-18",
            49 * 3 * 64 + 9 * 64**2 * 4 + 9 * (64 * 128 + 3 * 128**2) + 64 * 128
            + 9 * (128 * 256 + 3 * 256**2) + 128 * 256 + 9 * (256 * 512 + 3 * 512**2) + 256 * 512
            + 5120 + 5 * 64 + 5 * 128 + 5 * 256 + 5 * 512 + 10,
        ),
    ],
)  # fmt: skip
def test_architectures(name, parameters):
    build, shape = ARCHITECTURES[name]
    network = build(num_classes=10, num_tasks=20, head="shared", fel=True)
    x = jnp.zeros((2, *shape))
    params = jax.eval_shape(network.init, jax.random.key(0), x, 0)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters
    logits = jax.eval_shape(network.apply, {"params": params}, x, 0)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "changes", "match"),
    [
        ((2, 3, 8, 3), {}, r"shape \(2, 3, 8, 3\); expected images .* of 4 x 4 pixels or more"),
        ((2, 784), {}, r"shape \(2, 784\); expected images"),
        ((2, 784), {"name": "resnet-18"}, r"shape \(2, 784\); expected images .* of 1 x 1"),
        ((2, 8, 8, 3), {"head": "per-task"}, "head is 'per-task'; expected one of shared, frozen"),
    ],
)
def test_networks_refuse_what_they_cannot_take(shape, changes, match):
    given = {"num_classes": 2, "num_tasks": 3, "head": "shared", "fel": True} | changes
    build = ARCHITECTURES[given.pop("name", "lenet-5")].build
    with pytest.raises(ValueError, match=match):
        build(**given).init(jax.random.key(0), jnp.zeros(shape), 0)


@pytest.mark.parametrize("on_convs", [True, False])
def test_convolutions_with_and_without_fel(on_convs):
    convs = (ConvLayer(3, 4, True), ConvLayer(3, 4, True))
    network = FeedForward(
        convs=convs, hidden=(6,), num_classes=3, num_tasks=2, head="shared", fel=True,
        fel_on_convs=on_convs,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = network.init(jax.random.key(1), x, 0)["params"]

    def outputs(task):
        seen = network.apply({"params": params}, x, task, capture_intermediates=True)[1]
        return {name: layer["__call__"][0] for name, layer in seen["intermediates"].items()
                if name in ("Conv_0", "Conv_1", "Dense_0")}  # fmt: skip

    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), outputs(0), outputs(1))
    assert same == {"Conv_0": not on_convs, "Conv_1": not on_convs, "Dense_0": False}


def test_fel_on_convs_is_the_experiments_to_choose(digits):
    def logits(**changes):
        config = presets.config("split-digits", network="lenet-5", **changes)
        sequence = tasks.SEQUENCES["split"](digits, config.num_tasks)
        key = jax.random.key(0)
        problem = experiment.make_problem(config, METHODS["rgo"], sequence, "digits", key)
        x = jax.random.normal(jax.random.key(1), (2, *sequence.input_shape))
        return problem.logits(problem.init(jax.random.key(2)), x, jnp.int32(1))

    everywhere, dense, nowhere = logits(), logits(fel_on_convs=False), logits(fel=False)
    assert not np.allclose(everywhere, dense, rtol=1e-3)
    assert not np.allclose(dense, nowhere, rtol=1e-3)
    np.testing.assert_array_equal(nowhere, logits(fel=False, fel_on_convs=False))

