"""The paper's experiments, re-run: ``python -m benchmarks --help``."""
