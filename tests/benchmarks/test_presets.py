def test_cosine_schedule_starts_anew_in_each_task():
    config = presets.config("permuted-mnist", schedule="cosine", learning_rate=0.4)
    schedule = config.learning_rate_schedule()
    rates = np.asarray(jax.vmap(schedule)(jnp.array([0, 500, 999, 1000, 1500, 19_999])))
    np.testing.assert_allclose(rates, [0.4, 0.2, 0, 0.4, 0.2, 0], atol=1e-5)
    constant = presets.config("permuted-mnist").learning_rate_schedule()
    assert float(constant(12_345)) == pytest.approx(0.1)


def test_the_papers_rates_of_mini_imagenet():
    """0.01 for twenty epochs, 0.03 for the 2000 steps of Table 1, both as the preset has them."""
    rates = {
        epochs: presets.config("split-mini-imagenet", epochs=epochs).learning_rate
        for epochs in (None, 20, 8)
    }
    assert rates == {None: 0.01, 20: 0.01, 8: 0.03}
    assert presets.config("split-mini-imagenet", epochs=8).steps_per_task == 2000
    assert presets.config("split-mini-imagenet", epochs=8, learning_rate=0.2).learning_rate == 0.2


def test_protocol_los_is_the_papers():
    config = presets.config("permuted-mnist")
    assert (config.num_tasks, config.steps_per_task, config.batch_size) == (20, 1000, 10)
    assert (config.network, config.learning_rate, config.alpha) == ("mlp", 0.1, 1.0)
    assert (config.head, config.schedule) == ("shared", "constant")
    network = ARCHITECTURES["mlp"].build(num_classes=10, num_tasks=20, head="shared", fel=False)
    params = network.init(jax.random.key(0), jnp.zeros((1, 784)), 0)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 269_322
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(256), atol=1e-5)
    assert {float(b) for b in params["head"]["Dense_0"]["bias"]} == {np.float32(0.1)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"benchmark": "permuted-cifar"}, "Unknown benchmark 'permuted-cifar'.*permuted-mnist"),
        ({"benchmark": "permuted-mnist", "preset": "x"}, "Unknown preset 'x'; expected one of pap"),
        ({"benchmark": "permuted-mnist", "head": "x"}, "Unknown head 'x'.*shared, frozen"),
        ({"benchmark": "permuted-mnist", "schedule": "x"}, "Unknown schedule 'x'"),
        ({"benchmark": "permuted-mnist", "num_tasks": 0}, "num_tasks is 0; expected more than 0"),
        ({"benchmark": "permuted-mnist", "alpha": -1}, "alpha is -1; expected more than 0"),
        ({"benchmark": "permuted-mnist", "label_smoothing": 1}, "label_smoothing is 1; expected 0"),
        (
            {"benchmark": "split", "data": "mnist"},
            "--data is 'mnist'; expected the path of an",
        ),
        ({"benchmark": "permuted-mnist", "data": "a.npz"}, "for --data.*permuted, rotated"),
    ],
)
def test_configuration_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        presets.config(**arguments)

