#!/usr/bin/env bash
# Runs everything that benchmarks/results holds, and writes its tables and figures anew.
# Takes most of a day on two CPU cores. Needs MNIST: see docs/benchmarks.md on TFDS_DATA_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
mnist=(permuted-mnist rotated-mnist)
out=(--out benchmarks/results)

# What the paper ran itself, in the authors' setting, and under other heads.
python -m benchmarks "${mnist[@]}" --methods rgo,rgo-2,sgd,stl "${out[@]}"
for head in frozen per_task; do
  python -m benchmarks "${mnist[@]}" --methods rgo,rgo-2 --head "$head" "${out[@]}"
done
python -m benchmarks "${mnist[@]}" --methods rgo,stl --preset recommended "${out[@]}"
# The baselines, in the setting of the harness, as they are and with feature encoding layers.
baselines=ewc,ewc-textbook,a-gem,er-ring,los,gpm,sgp,owm,owm-online
for head in shared per_task; do
  python -m benchmarks "${mnist[@]}" --methods "$baselines" --head "$head" "${out[@]}"
  python -m benchmarks "${mnist[@]}" --methods "$baselines" --head "$head" --fel "${out[@]}"
done
# One choice of the authors' program changed at a time.
python -m benchmarks ablation "${mnist[@]}" --seeds 2 "${out[@]}"
python -m benchmarks permuted-digits rotated-digits --methods rgo,rgo-2,sgd,stl "${out[@]}"
python -m benchmarks report benchmarks/results
python -m benchmarks.perf --out benchmarks/results/perf-cpu.md
