"""How tests compile: quickly, and not as users do, unless the environment says otherwise.

LLVM's optimizations are left out, and XLA's older code generator for CPUs is taken.
"""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
QUICKLY = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"

# Processes whose numbers are to be those of the tests' own need it too.
XLA_FLAG = "--xla_cpu_use_fusion_emitters=false" if QUICKLY else ""
