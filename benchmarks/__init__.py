"""The paper's experiments, re-run: ``python -m benchmarks --help``."""

import os

# Before LAPACK is loaded. Its threads go on spinning after a Cholesky factorisation, on the cores
# that XLA's matrix products then wait for: with two of them consolidation takes 1.5 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
