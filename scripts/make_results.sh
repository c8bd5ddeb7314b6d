#!/usr/bin/env bash
# Make every file of results/ anew: bash scripts/make_results.sh DATA, where DATA holds omniglot-py, tiny-imagenet, cifar10 and weights.
# Training conv5 takes half an hour on two cores, the features of Tiny ImageNet a quarter, all else a few minutes each.
set -euo pipefail
data=${1:?usage: bash scripts/make_results.sh DATA}
cd "$(dirname "$0")/.."
open_heads="logistic mahalanobis-diagonal cosine-msp" # beside the others, in the open protocol
heads="nam nam-sequential nam-parallel cosine cosine-centred cosine-root cosine-root-centred protonet nearest ridge mahalanobis plda"

evaluate() { # NAME OPTIONS...: writes results/NAME.json and results/NAME.md
  local name=$1 more=$open_heads
  shift
  [[ "$*" == *generalized* ]] && more="" # hundreds of base classes in every episode: hours for the logistic regression
  python scripts/episode_eval.py --quiet --json "results/$name.json" --markdown "results/$name.md" --heads $heads $more "$@" >/dev/null
  echo "results/$name"
}

omniglot=(--dataset omniglot --data-dir "$data")
mobilenet=(--backbone timm/mobilenetv2_100 --weights "$data/weights/mobilenetv2_100_imagenet.safetensors"
  --model-option pad_type=same --transform-option mean=0.5 std=0.5 input_size=160 crop_pct=1.0 interpolation=bilinear)
tiny=(--dataset "folder:$data/tiny-imagenet" "${mobilenet[@]}")
# A network that has seen the base classes alone. Weights trained on Tiny ImageNet are not published, so it is trained here.
conv5=checkpoints/conv5.safetensors
[ -f "$conv5" ] || python scripts/pretrain_photos.py "$data/tiny-imagenet" --out "$conv5"
tiny_conv5=(--dataset "folder:$data/tiny-imagenet" --backbone conv5 --weights "$conv5")
# A far domain: what is known of base classes, and what is frozen, is of another data set.
cifar=(--dataset cifar10 --data-dir "$data" "${mobilenet[@]}"
  --base "folder:$data/tiny-imagenet/base" --validation "folder:$data/tiny-imagenet/val")

for shots in 1 5; do
  evaluate "digits-5way-${shots}shot" --shots $shots
  evaluate "omniglot-5way-${shots}shot" "${omniglot[@]}" --shots $shots
  evaluate "omniglot-20way-${shots}shot" "${omniglot[@]}" --shots $shots --ways 20 --open-ways 20
  evaluate "omniglot-generalized-${shots}shot" "${omniglot[@]}" --shots $shots --protocol generalized
  evaluate "tiny-imagenet-5way-${shots}shot" "${tiny[@]}" --shots $shots
  evaluate "tiny-imagenet-generalized-${shots}shot" "${tiny[@]}" --shots $shots --protocol generalized \
    --base-queries "folder:$data/tiny-imagenet/base_unseen"
  evaluate "tiny-imagenet-conv5-5way-${shots}shot" "${tiny_conv5[@]}" --shots $shots
  evaluate "tiny-imagenet-conv5-generalized-${shots}shot" "${tiny_conv5[@]}" --shots $shots --protocol generalized \
    --base-queries "folder:$data/tiny-imagenet/base_unseen"
  evaluate "cifar10-5way-${shots}shot" "${cifar[@]}" --shots $shots
done

python scripts/lake_runs.py "$data" --json results/omniglot_lake_runs.json >results/omniglot_lake_runs.md
python scripts/summarize_results.py results/*.json >results/summary.md
python scripts/false_alarms.py "$data" --json results/false_alarms.json >results/false_alarms.md
