#!/usr/bin/env bash
# Make every file of results/ anew: bash scripts/make_results.sh DATA, where DATA holds omniglot-py, tiny-imagenet and weights.
# The features of Tiny ImageNet take a quarter of an hour on two cores, all else a few minutes.
set -euo pipefail
data=${1:?usage: bash scripts/make_results.sh DATA}
cd "$(dirname "$0")/.."
heads="nam nam-sequential nam-parallel cosine cosine-centred cosine-root cosine-root-centred protonet nearest ridge mahalanobis plda"

evaluate() { # NAME OPTIONS...: writes results/NAME.json and results/NAME.md
  local name=$1
  shift
  python scripts/episode_eval.py --quiet --json "results/$name.json" --markdown "results/$name.md" --heads $heads "$@" >/dev/null
  echo "results/$name"
}

omniglot=(--dataset omniglot --data-dir "$data")
tiny=(--dataset "folder:$data/tiny-imagenet"
  --backbone timm/mobilenetv2_100 --weights "$data/weights/mobilenetv2_100_imagenet.safetensors"
  --model-option pad_type=same --transform-option mean=0.5 std=0.5 input_size=160 crop_pct=1.0 interpolation=bilinear)

for shots in 1 5; do
  evaluate "digits-5way-${shots}shot" --shots $shots
  evaluate "omniglot-5way-${shots}shot" "${omniglot[@]}" --shots $shots
  evaluate "omniglot-20way-${shots}shot" "${omniglot[@]}" --shots $shots --ways 20 --open-ways 20
  evaluate "omniglot-generalized-${shots}shot" "${omniglot[@]}" --shots $shots --protocol generalized
  evaluate "tiny-imagenet-5way-${shots}shot" "${tiny[@]}" --shots $shots
  evaluate "tiny-imagenet-generalized-${shots}shot" "${tiny[@]}" --shots $shots --protocol generalized \
    --base-queries "folder:$data/tiny-imagenet/base_unseen"
done

python scripts/summarize_results.py results/*.json >results/summary.md
python scripts/false_alarms.py "$data" --json results/false_alarms.json >results/false_alarms.md
