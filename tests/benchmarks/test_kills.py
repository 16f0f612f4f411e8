"""Runs killed at their file operations, and at every one of them: nothing is lost, nothing left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 23])
def test_a_run_killed_at_any_file_operation_goes_on_with_the_same_numbers(tmp_path, stride):
    """Killed once more while it goes on, too; and where a result of the same run is replaced."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.killed", str(tmp_path), str(stride)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["files"] == ["permuted-digits/sgd_num_tasks=3_seeds=2.json"]
    # Two checkpoints and a result, each opened, written, synced and moved, make so many.
    assert min(found["first"], found["again"]) * stride > 80
