#!/usr/bin/env bash
# Softmax and gm over three seeds, and adversarial training on the built-in birds. One thread: about half an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
train() { .venv/bin/python -m robustfg.train "$@" trainer.enable_progress_bar=false; }
for seed in 0 1 2; do
  train seed=$seed run_name=study-$seed
  train loss=gm_late_ramps seed=$seed run_name=study-$seed
done
for loss in gm gm_moving_means; do train loss=$loss run_name=study-0; done
train training=adversarial run_name=study-adversarial-0
.venv/bin/python experiments/table.py outputs/birds-softmax/study-{0,1,2} outputs/birds-gm_late_ramps/study-{0,1,2} \
  outputs/birds-{gm,gm_moving_means}/study-0 outputs/birds-softmax/study-adversarial-0
