#!/usr/bin/env bash
# Every loss module on the built-in birds from the same softmax-trained backbone, at equal epochs. Two cores: half an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-outputs}
train() { .venv/bin/python -m robustfg.train trainer.enable_progress_bar=false output="$out" "$@"; }
train run_name=backbone
mkdir -p "$out/weights"
.venv/bin/python experiments/accv2020/backbone.py "$out/birds-softmax/backbone/checkpoints/best.ckpt" "$out/weights/birds.safetensors"
again="model.weights=$(realpath "$out")/weights/birds.safetensors trainer.max_epochs=12 run_name=rival"
for loss in softmax center triplet pcl attention_pooling gm; do train loss=$loss $again optimizer.lr=0.02; done
train loss=pcl loss.near=0.01 $again optimizer.lr=0.02 run_name=rival-near-0.01 # at the released weight of 1 it collapses
# The prototype losses bring phases; their released rates are for ImageNet backbones of 25 times the steps.
for loss in maxsep maxsep_released protopnet; do
  train loss=$loss $again trainer.max_epochs=24 optimizer=adam loss.phases.joint.lr.backbone=1e-3
done
.venv/bin/python experiments/table.py "$out"/birds-{softmax,center,triplet,pcl}/rival \
  "$out/birds-pcl/rival-near-0.01" "$out"/birds-{attention_pooling,gm,maxsep,maxsep_released,protopnet}/rival
