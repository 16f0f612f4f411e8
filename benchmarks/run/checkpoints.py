"""The checkpoint of a run, written after each task, so that a killed run goes on where it was."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import presets
from benchmarks.data.files import atomic_write, digest
from benchmarks.run.measurements import flatten, unflatten
from benchmarks.run.train import Progress


class Checkpoints:
    """The latest checkpoint of one run: one ``.npz`` file, whatever its name.

    It holds seeds without the doubles that fill up the devices, so the number of devices may be
    another when the run goes on.

    Args:
      path: the file.
      experiment: all that decides the run's numbers, as JSON has it; a checkpoint of another
        experiment is refused.
      origin: where what is measured from now on comes from, as
        `benchmarks.run.provenance.provenance` has it.

    Attributes:
      origins: where the run's numbers come from: a checkpoint's, once restored, then ``origin``.
    """

    def __init__(self, path: Path, experiment: dict[str, Any], origin: dict[str, Any]) -> None:
        self.path = path
        self.experiment = json.loads(json.dumps(experiment))
        self.origins = [origin]

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.path.exists()

    def check_readable(self) -> None:
        """Reads the whole file.

        Raises:
          ValueError: it is not what was written.
        """
        self._read()

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and reads it back; then it takes the place of the one before.

        Raises:
          OSError: it cannot be written, or not be read back.
        """
        about = {
            "experiment": self.experiment,
            "origins": self.origins,
            "tasks_done": progress.tasks_done,
        }
        content = {"about": np.array(json.dumps(about))}
        content |= {name: np.asarray(x) for name, x in flatten(progress.measured).items()}
        num_seeds = len(progress.measured.r)
        content |= {name: _raw(leaf)[:num_seeds] for name, leaf in _leaves_by_name(progress.state)}
        written = _digest(content)
        with atomic_write(self.path) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, **content, digest=np.array(written))  # type: ignore[arg-type]
            if not _holds(temporary, written):
                raise OSError("what was read back is not what had been written")

    def restore(self, fresh: Progress) -> Progress:
        """Reads the checkpoint.

        Args:
          fresh: of the same run before its first task, to tell shapes and devices.

        Raises:
          ValueError: it is unreadable, not what was written, or of another experiment.
        """
        content = self._read()
        about = json.loads(content["about"].item())
        self._check(about["experiment"])
        names = [name for name, _ in _leaves_by_name(fresh.state)]
        try:
            state = jax.tree.unflatten(
                jax.tree.structure(fresh.state),
                [_place(content[name], leaf) for name, leaf in _leaves_by_name(fresh.state)],
            )
        except (KeyError, ValueError) as error:
            kept = sorted(name for name in content if name.startswith("state"))
            raise self._unreadable(f"its state is {kept}; expected {names}") from error
        self.origins = [*about["origins"], *self.origins]
        # What a file of an older version lacks was not measured.
        unmeasured = flatten(fresh.measured)
        measured = unflatten(unmeasured | {k: v for k, v in content.items() if k in unmeasured})
        return Progress(about["tasks_done"], measured, state)

    def discard(self) -> None:
        """Removes the file: the run is finished, and its results are saved."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, np.ndarray]:
        try:
            # Opened here: numpy leaves a file open that is cut short.
            with self.path.open("rb") as file, np.load(file) as found:
                content = dict(found)
            # Of disks that give back something else than they were given.
            if content["digest"].item() != _digest(content):
                raise ValueError("its numbers are not those that were written")
        # A damaged file raises many kinds, from `zipfile`, `numpy` and `ast`.
        except Exception as error:
            raise self._unreadable(str(error)) from error
        return content

    def _unreadable(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}: the checkpoint cannot be read ({reason}). Delete it to begin this run "
            "anew; finished results are not touched."
        )

    def _check(self, found: dict[str, Any]) -> None:
        keys = found.keys() | self.experiment.keys()
        for key in sorted(keys):
            # One from before there was this field is of the field's default.
            default = presets.DEFAULTS.get(key)
            ours, theirs = self.experiment.get(key, default), found.get(key, default)
            if ours != theirs:
                raise ValueError(
                    f"{self.path}: a checkpoint of another run: its {key} is {theirs!r}; this "
                    f"one's is {ours!r}. Go on with it as it was begun, choose another --out, or "
                    "delete it to begin anew."
                )


def _leaves_by_name(state: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(f"state{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _place(saved: np.ndarray, fresh: jax.Array) -> jax.Array:
    """What was saved of each seed, on the devices of ``fresh``, which may have more doubles."""
    doubles = np.repeat(saved[-1:], len(fresh) - len(saved), axis=0)
    whole: Any = np.concatenate([saved, doubles])
    if _is_key(fresh):
        whole = jax.random.wrap_key_data(whole, impl=jax.random.key_impl(fresh))
    if (whole.shape, whole.dtype) != (fresh.shape, fresh.dtype):
        raise ValueError("another shape")
    return jax.device_put(whole, fresh.sharding)


def _digest(content: Mapping[str, np.ndarray]) -> str:
    """Of names and numbers, which are looked up one after the other."""
    names = sorted(content.keys() - {"digest"})
    return digest(itertools.chain.from_iterable((np.array(n), content[n]) for n in names))


def _holds(path: Path, written: str) -> bool:
    """Whether a file can be read and has this digest."""
    try:
        with path.open("rb") as file, np.load(file) as found:
            return _digest(found) == written
    except OSError:
        raise
    except Exception:  # As above.
        return False
