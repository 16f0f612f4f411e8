#!/usr/bin/env bash
# Runs everything that benchmarks/results holds, and writes its tables and figures anew.
# Takes a day on two CPU cores. Needs MNIST and CIFAR-100: see docs/benchmarks.md on TFDS_DATA_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
mnist=(permuted-mnist rotated-mnist)
out=(--out benchmarks/results)

# What the paper ran itself, in the authors' setting, and under other heads.
python -m benchmarks run "${mnist[@]}" --methods rgo,rgo-2,sgd,stl --forward-transfer --infer-task "${out[@]}"
for head in frozen per_task; do
  python -m benchmarks run "${mnist[@]}" --methods rgo,rgo-2 --head "$head" "${out[@]}"
done
python -m benchmarks run "${mnist[@]}" --methods rgo,stl --preset recommended --forward-transfer \
  --infer-task "${out[@]}"
# Without task ids; before the baselines, of which two are measured without them, too.
python -m benchmarks run "${mnist[@]}" --methods rgo --preset without-ids --infer-task "${out[@]}"
python -m benchmarks run "${mnist[@]}" --methods ewc,gpm --head per_task --infer-task "${out[@]}"
# The baselines, in the setting of the harness, as they are and with feature encoding layers.
baselines=ewc,ewc-textbook,a-gem,er-ring,los,gpm,sgp,owm,owm-online
for head in shared per_task; do
  python -m benchmarks run "${mnist[@]}" --methods "$baselines" --head "$head" "${out[@]}"
  python -m benchmarks run "${mnist[@]}" --methods "$baselines" --head "$head" --fel "${out[@]}"
done
# One choice of the authors' program changed at a time.
python -m benchmarks run --ablation "${mnist[@]}" "${out[@]}"
python -m benchmarks run permuted-digits rotated-digits --methods rgo,rgo-2,sgd,stl --forward-transfer "${out[@]}"
# Colour images: one seed.
python -m benchmarks run split-cifar100 --methods rgo,rgo-2 --seeds 1 "${out[@]}"
python -m benchmarks run split-cifar100 --methods stl,sgd --network lenet-5 --seeds 1 "${out[@]}"
python -m benchmarks language "${out[@]}"
python -m benchmarks report benchmarks/results
python docs/pictures.py
python -m benchmarks perf --out benchmarks/results/perf-cpu.md

# What the preset "recommended" was chosen on: held-out training images, never the test images.
validation=(--methods rgo --seeds 2 --preset recommended --validation)
validation+=(--out benchmarks/results/validation)
python -m benchmarks run "${mnist[@]}" "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --alpha 0.03 "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --alpha 0.3 "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --learning-rate 0.3 "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --head per_task "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --online "${validation[@]}"
# The same with biases that are trained in every task.
validation+=(--biases own)
python -m benchmarks run "${mnist[@]}" "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --alpha 0.03 "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --head per_task "${validation[@]}"
python -m benchmarks run "${mnist[@]}" --momentum 0.5 --learning-rate 0.1 "${validation[@]}"
python -m benchmarks run permuted-mnist --alpha 0.01 "${validation[@]}"
python -m benchmarks run permuted-mnist --no-protect-biases "${validation[@]}"
python -m benchmarks run permuted-mnist --no-protect-biases --columns mean --alpha 0.0015 \
  "${validation[@]}"
python -m benchmarks run rotated-mnist --learning-rate 0.3 "${validation[@]}"
python -m benchmarks run rotated-mnist --columns mean --alpha 0.3 "${validation[@]}"
uniform=(--initial-values uniform --columns mean)
python -m benchmarks run "${mnist[@]}" "${uniform[@]}" --alpha 0.3 "${validation[@]}"
for alpha in 0.01 0.03; do
  python -m benchmarks run "${mnist[@]}" "${uniform[@]}" --no-fel-on-input --alpha "$alpha" \
    "${validation[@]}"
done
# How much a network is to learn of encodings that no task uses.
unsure=(--methods rgo --seeds 1 --validation --infer-task --out benchmarks/results/validation)
python -m benchmarks run "${mnist[@]}" --preset recommended "${unsure[@]}"
python -m benchmarks run "${mnist[@]}" --preset without-ids "${unsure[@]}"
for weight in 0.2 0.5; do
  python -m benchmarks run "${mnist[@]}" --preset without-ids --unused-weight "$weight" "${unsure[@]}"
done
# What a relative alpha is good for, beside the authors' setting.
relative=(--methods rgo --seeds 1 --validation --out benchmarks/results/validation)
python -m benchmarks run "${mnist[@]}" "${relative[@]}"
for alpha in 0.03 0.1 0.3 1 3; do
  python -m benchmarks run "${mnist[@]}" --relative-alpha --alpha "$alpha" "${relative[@]}"
done
python -m benchmarks report benchmarks/results/validation
