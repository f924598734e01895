#!/usr/bin/env bash
# softmax and gm on scikit-learn's real digits.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
for loss in softmax gm; do
  .venv/bin/python -m robustfg.train data=digits loss=$loss run_name=study trainer.enable_progress_bar=false
done
.venv/bin/python experiments/table.py outputs/digits-{softmax,gm}/study
