"""How tests compile: quickly, and not as users do, unless the environment says otherwise.

LLVM's optimizations are left out, and XLA's older code generator for CPUs is taken while there is
one.
"""

import os
import subprocess
import sys

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
QUICKLY = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"


def _flag() -> str:
    """XLA ends a process that gives it a flag it does not know: a process of its own finds out."""
    flag = "--xla_cpu_use_fusion_emitters=false"
    program = "import jax; jax.devices('cpu')"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    tried = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    return flag if tried.returncode == 0 else ""


# Processes whose numbers are to be those of the tests' own need it too. Pytest's workers are told.
if "RGO_JAX_TESTS_XLA_FLAG" not in os.environ:
    os.environ["RGO_JAX_TESTS_XLA_FLAG"] = _flag() if QUICKLY else ""
XLA_FLAG = os.environ["RGO_JAX_TESTS_XLA_FLAG"]
