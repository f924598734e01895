#!/usr/bin/env bash
# The protocol of Nakka & Salzmann on the built-in birds. Needs the backbone that experiments/rivals/run.sh leaves.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-outputs}
quiet="trainer.enable_progress_bar=false output=$out"
backbone="model.weights=$(realpath "$out")/weights/birds.safetensors"
rates="loss.phases.joint.lr.backbone=1e-3"
ramp="training.ramp_epochs=6" # a departure: the protocol attacks at full strength from the first step
train() { .venv/bin/python -m robustfg.train $quiet "$@"; }
evaluate() { .venv/bin/python -m robustfg.evaluate $quiet "$@"; }
train experiment=accv2020 run_name=normal $backbone $rates trainer.max_epochs=24
train experiment=accv2020_robust run_name=robust $rates trainer.max_epochs=24 $ramp init_from="$out/birds-maxsep/normal/checkpoints/best.ckpt"
ap="experiment=accv2020 loss=attention_pooling attack=accv2020 optimizer=sgd optimizer.lr=0.02 trainer.max_epochs=12"
train $ap run_name=normal $backbone
train $ap run_name=robust training=fast training.clean_epochs=0 $ramp init_from="$out/birds-attention_pooling/normal/checkpoints/best.ckpt" trainer.max_epochs=16
for stage in normal robust; do
  best=$out/birds-maxsep/$stage/checkpoints/best.ckpt
  evaluate checkpoint=$best loss.head=attention attack=accv2020 run_name=accv-$stage-attention
  evaluate checkpoint=$best attack=standard data.max_test_samples=96 run_name=accv-$stage-standard
  evaluate checkpoint=$best loss.head=attention attack=standard data.max_test_samples=96 run_name=accv-$stage-attention-standard
  ap=$out/birds-attention_pooling/$stage/checkpoints/best.ckpt
  evaluate checkpoint=$ap attack=standard data.max_test_samples=96 run_name=accv-$stage-ap-standard
done
echo "normal and robust training: maxsep (prototype head), its attention head, attention pooling"
for stage in normal robust; do
  .venv/bin/python experiments/table.py "$out/birds-maxsep/$stage" "$out/evaluations/accv-$stage-attention" "$out/birds-attention_pooling/$stage"
  .venv/bin/python experiments/table.py "$out"/evaluations/accv-$stage-{standard,attention-standard,ap-standard}
done
