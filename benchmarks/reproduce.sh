#!/usr/bin/env bash
# Runs everything that benchmarks/results holds, and writes its tables and figures anew.
# Takes more than a day on two CPU cores. Needs MNIST and CIFAR-100: see the README on TFDS_DATA_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
mnist=(permuted-mnist rotated-mnist)
out=(--out benchmarks/results)

# The paper's setting under each head policy. A model per task has no head policy.
for head in shared frozen per_task; do
  python -m benchmarks "${mnist[@]}" --methods rgo,rgo-2,sgd --head "$head" "${out[@]}"
done
python -m benchmarks "${mnist[@]}" --methods stl "${out[@]}"
python -m benchmarks "${mnist[@]}" --methods rgo,rgo-2,sgd,stl --preset recommended "${out[@]}"
# The paper's baselines, GPM's successor SGP and OWM, as they are and with what RGO has.
baselines=ewc,ewc-textbook,a-gem,er-ring,los,gpm,sgp,owm,owm-online
for head in shared per_task; do
  python -m benchmarks "${mnist[@]}" --methods "$baselines" --head "$head" "${out[@]}"
  python -m benchmarks "${mnist[@]}" --methods "$baselines,sgd" --head "$head" --fel "${out[@]}"
done
# Colour images, with LeNet-5: 20 epochs, a few seeds at a time, and Table 1's 2000 steps with the
# baselines too.
for seeds in 1 1-2; do
  python -m benchmarks split-cifar100 --methods rgo-2,sgd,stl --seeds "$seeds" "${out[@]}"
  python -m benchmarks superclass-cifar100 --methods rgo,rgo-2,sgd,stl --seeds "$seeds" "${out[@]}"
  python -m benchmarks superclass-cifar100 --methods rgo,stl --seeds "$seeds" --preset recommended \
    "${out[@]}"
done
for seeds in 1 1-1 2-2; do
  python -m benchmarks split-cifar100 --methods rgo --seeds "$seeds" "${out[@]}"
  python -m benchmarks split-cifar100 --methods rgo,stl --seeds "$seeds" --preset recommended \
    "${out[@]}"
done
python -m benchmarks split-cifar100 --methods "rgo,$baselines,sgd,stl" --epochs 8 --seeds 1 "${out[@]}"
python -m benchmarks split-cifar100 --methods rgo,stl --epochs 8 --seeds 1 --preset recommended \
  "${out[@]}"
constant=(--preset recommended --schedule constant --learning-rate 0.03)
for epochs in 8 20; do
  python -m benchmarks split-cifar100 --methods rgo --epochs "$epochs" --seeds 1 "${constant[@]}" \
    "${out[@]}"
done
# Hours on a CPU, minutes on a GPU.
python -m benchmarks split-cifar100 --methods rgo --network alexnet-6 --preset recommended --seeds 3 \
  "${out[@]}"
python -m benchmarks split-cifar100 --methods rgo,stl --network alexnet-6 --seeds 1 "${out[@]}"
python -m benchmarks permuted-digits rotated-digits --methods rgo,rgo-2,sgd,stl "${out[@]}"
python -m benchmarks report benchmarks/results
python -m benchmarks.perf --out benchmarks/results/perf-cpu.md

# What the preset "recommended" was chosen on: held-out training data, never the test data.
validation=(--methods rgo --seeds 2 --validation --out benchmarks/results/validation)
for rate in 0.1 0.2 0.3; do
  for head in shared frozen per_task; do
    python -m benchmarks "${mnist[@]}" --head "$head" --schedule cosine --learning-rate "$rate" \
      "${validation[@]}"
  done
done
for rate in 0.1 0.2; do
  python -m benchmarks "${mnist[@]}" --head frozen --schedule constant --learning-rate "$rate" \
    "${validation[@]}"
done
for alpha in 0.3 3; do
  python -m benchmarks "${mnist[@]}" --preset recommended --alpha "$alpha" "${validation[@]}"
done
python -m benchmarks "${mnist[@]}" --preset recommended --no-normalize "${validation[@]}"
# The same for colour images: more protection, FEL before dense layers only, no trace rule.
validation=(split-cifar100 --methods rgo --seeds 1 --validation --out benchmarks/results/validation)
for alpha in 0.1 1; do
  python -m benchmarks "${validation[@]}" --epochs 2 --alpha "$alpha"
done
python -m benchmarks "${validation[@]}" --epochs 4
python -m benchmarks "${validation[@]}" --epochs 4 --no-fel-on-convs
for epochs in 4 20; do
  python -m benchmarks "${validation[@]}" --epochs "$epochs" "${constant[@]}"
  python -m benchmarks "${validation[@]}" --epochs "$epochs" "${constant[@]}" --alpha 1
done
python -m benchmarks "${validation[@]}" --preset recommended
# A second seed of the last two rates.
python -m benchmarks "${validation[@]}" "${constant[@]}" --seeds 1-1
python -m benchmarks "${validation[@]}" --preset recommended --seeds 1-1
# Whether smoothed labels help.
smoothed=(--preset recommended --label-smoothing 0.1)
python -m benchmarks "${validation[@]}" "${smoothed[@]}"
python -m benchmarks "${validation[@]}" "${smoothed[@]}" --seeds 1-1
python -m benchmarks "${validation[@]}" "${smoothed[@]}" --alpha 1
# Whether LOS suffers from its rate there.
for method in sgd "los --learning-rate 0.1" los; do
  # shellcheck disable=SC2086  # a method and its rate are two words
  python -m benchmarks split-cifar100 --epochs 2 --seeds 1 --validation --methods $method \
    --out benchmarks/results/validation
done
python -m benchmarks report benchmarks/results/validation
