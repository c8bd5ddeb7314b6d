#!/usr/bin/env bash
# Write all files of results/ again: bash scripts/make_results.sh DATA, where DATA holds omniglot-py, tiny-imagenet, cifar10 and
# weights. On two cores conv5 trains for half an hour, the features of Tiny ImageNet take a quarter, each other step a few minutes.
set -euo pipefail
data=${1:?usage: bash scripts/make_results.sh DATA}
cd "$(dirname "$0")/.."
open_heads="logistic mahalanobis-diagonal cosine-msp" # in the open protocol only
heads="nam cosine cosine-centred cosine-root cosine-root-centred cosine-snorm lda-snorm plda-snorm nam-sequential nam-parallel
  protonet nearest ridge mahalanobis plda"

evaluate() { # NAME OPTIONS...: writes results/NAME.json and results/NAME.md
  local name=$1 more=$open_heads
  shift
  [[ "$*" == *generalized* ]] && more="" # with hundreds of base classes logistic regression takes hours
  python scripts/episode_eval.py --quiet --json "results/$name.json" --markdown "results/$name.md" --heads $heads $more "$@" >/dev/null
  echo "results/$name"
}

omniglot=(--dataset omniglot --data-dir "$data")
mobilenet=(--backbone timm/mobilenetv2_100 --weights "$data/weights/mobilenetv2_100_imagenet.safetensors"
  --model-option pad_type=same --transform-option mean=0.5 std=0.5 input_size=160 crop_pct=1.0 interpolation=bilinear)
tiny=(--dataset "folder:$data/tiny-imagenet" "${mobilenet[@]}")
# A network trained on the base classes alone. No such weights are published for Tiny ImageNet, so it is trained here.
conv5=checkpoints/conv5.safetensors
[ -f "$conv5" ] || python scripts/pretrain_photos.py "$data/tiny-imagenet" --out "$conv5"
tiny_conv5=(--dataset "folder:$data/tiny-imagenet" --backbone conv5 --weights "$conv5")
# A far domain: base classes and frozen thresholds come from another data set.
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
python scripts/threshold_growth.py "$data" --json results/threshold_growth.json --plot results/threshold_growth.png >results/threshold_growth.md
python scripts/joint_write_alone.py "$data" --conv5 "$conv5" --json results/joint_write_alone.json >results/joint_write_alone.md
python scripts/summarize_results.py results/*.json >results/summary.md
python scripts/claims.py >results/claims.md
python scripts/keep_classes.py "$data" --json results/keep_classes.json --plot results/keep_classes.png >results/keep_classes.md
python scripts/false_alarms.py "$data" --json results/false_alarms.json >results/false_alarms.md
