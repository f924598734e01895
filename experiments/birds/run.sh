#!/usr/bin/env bash
# Softmax over three seeds, gm, and adversarial training on the built-in birds. Two CPU cores: about half an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."
train() { .venv/bin/python -m robustfg.train "$@" trainer.enable_progress_bar=false; }
for seed in 0 1 2; do train seed=$seed run_name=study-$seed; done
train loss=gm run_name=study-0
train training=adversarial run_name=study-adversarial-0
.venv/bin/python experiments/table.py outputs/birds-softmax/study-{0,1,2} outputs/birds-gm/study-0 \
  outputs/birds-softmax/study-adversarial-0
