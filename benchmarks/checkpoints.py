"""Checkpoints of a run, one after each task, so that a killed run goes on where it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import presets
from benchmarks.files import digest
from benchmarks.train import Progress

_MEASURED = ("r", "train", "losses", "task_seconds")


class Checkpoints:
    """The latest checkpoint of one run, in a folder of its own.

    Args:
      folder: made with the first checkpoint.
      experiment: all that decides the run's numbers, as JSON has it; a checkpoint of another
        experiment is refused.
      origin: where what is measured from now on comes from, as `benchmarks.results.provenance`
        has it.

    Attributes:
      origins: where the run's numbers come from: a checkpoint's, once restored, then ``origin``.
    """

    def __init__(self, folder: Path, experiment: dict[str, Any], origin: dict[str, Any]) -> None:
        self.folder = folder.absolute()  # orbax takes no other
        self.experiment = json.loads(json.dumps(experiment))
        self.origins = [origin]

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.folder.is_dir() and self._latest() is not None

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint, then removes the one before: a kill leaves one of them whole."""
        import orbax.checkpoint as ocp

        with self._manager() as manager:
            manager.save(
                progress.tasks_done,
                args=ocp.args.Composite(
                    experiment=ocp.args.JsonSave(self.experiment),
                    origins=ocp.args.JsonSave(self.origins),
                    measured=ocp.args.StandardSave(_measured(progress)),
                    state=ocp.args.StandardSave(progress.state),
                    # orbax does not find out whether a disk gives back what it was given.
                    digest=ocp.args.JsonSave({"sha256": _digest(progress)}),
                ),
            )

    def restore(self, fresh: Progress) -> Progress:
        """Reads the latest checkpoint.

        Args:
          fresh: of the same run before its first task, to tell shapes and devices.

        Raises:
          ValueError: it is unreadable, not what was written, or of another experiment.
        """
        import orbax.checkpoint as ocp

        step = self._latest()
        try:
            with self._manager() as manager:
                found = manager.restore(
                    step, args=ocp.args.Composite(experiment=ocp.args.JsonRestore())
                ).experiment
                self._check(found)
                restored = manager.restore(
                    step,
                    args=ocp.args.Composite(
                        origins=ocp.args.JsonRestore(),
                        measured=ocp.args.StandardRestore(_measured(fresh)),
                        state=ocp.args.StandardRestore(
                            jax.tree.map(ocp.utils.to_shape_dtype_struct, fresh.state)
                        ),
                        digest=ocp.args.JsonRestore(),
                    ),
                )
            measured = {name: np.asarray(restored.measured[name]) for name in _MEASURED}
            progress = Progress(tasks_done=int(step or 0), state=restored.state, **measured)
            if restored.digest != {"sha256": _digest(progress)}:
                raise ValueError("its numbers are not those that were written")
            origins = [*restored.origins, *self.origins]
        except _OtherExperimentError:
            raise
        # orbax raises many kinds for files that are missing or cut short.
        except Exception as error:
            raise ValueError(
                f"{self.folder}: the checkpoint after task {step} cannot be read ({error}). Delete "
                "the folder to begin this run anew; finished results are not touched."
            ) from error
        self.origins = origins
        return progress

    def discard(self) -> None:
        """Removes the folder: the run is finished, and its results are saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, found: dict[str, Any]) -> None:
        keys = found.keys() | self.experiment.keys()
        for key in sorted(keys):
            # One from before there was this field is of the field's default.
            default = presets.DEFAULTS.get(key)
            ours, theirs = self.experiment.get(key, default), found.get(key, default)
            if ours != theirs:
                raise _OtherExperimentError(
                    f"{self.folder}: a checkpoint of another run: its {key} is {theirs!r}; this "
                    f"one's is {ours!r}. Go on with it as it was begun, choose another --out, or "
                    "delete the folder to begin anew."
                )

    def _latest(self) -> int | None:
        with self._manager() as manager:
            return manager.latest_step()

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder, options=options)


class _OtherExperimentError(ValueError):
    pass


def _measured(progress: Progress) -> dict[str, np.ndarray]:
    return {name: getattr(progress, name) for name in _MEASURED}


def _digest(progress: Progress) -> str:
    def on_host(leaf: Any) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return digest(map(on_host, jax.tree.leaves((_measured(progress), progress.state))))
