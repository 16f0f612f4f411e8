import contextlib
import os
from collections.abc import Iterator

import hypothesis
import jax
import jax.monitoring
import pytest

from tests import compiling

# One compilation can outlast hypothesis's default deadline; CI repeats the same examples.
hypothesis.settings.register_profile("rgo_jax", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("rgo_jax")

# Compiling is most of what the tests take.
jax.config.update("jax_disable_most_optimizations", compiling.QUICKLY)
if compiling.XLA_FLAG:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XLA_FLAGS", compiling.XLA_FLAG, prepend=" ")
        jax.devices()  # XLA reads its flags once

# Shapes that only broadcast by accident are errors, here as in the code of strict users.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what is compiled from one run to the next; compiling is most of what the tests take.

    In pytest's own cache (``--cache-clear`` empties it), also for the processes that tests start.
    """
    if not config.pluginmanager.has_plugin("cacheprovider"):
        return
    settings = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        # With a limit jax locks the cache (by filelock). Without, one process could read what
        # another has half written, and end by a segmentation fault.
        "jax_compilation_cache_max_size": 2**33,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Programs are compiled as users compile them: for tests of what rounds alike only then."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", compiling.QUICKLY)


_compilations = 0


def _listen(event: str, duration: float, **kwargs: object) -> None:
    del duration, kwargs
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    count = 0


@pytest.fixture
def compilations():
    """A context manager that counts XLA compilations inside it."""

    @contextlib.contextmanager
    def counting() -> Iterator[Compilations]:
        result, before = Compilations(), _compilations
        yield result
        result.count = _compilations - before

    return counting
