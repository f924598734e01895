#!/usr/bin/env bash
# softmax and gm on Fashion-MNIST, from the real IDX files: ROOT is their folder (Debian: apt-get install dataset-fashion-mnist).
set -euo pipefail
export OMP_NUM_THREADS=1
cd "$(dirname "$0")/../.."
for loss in softmax gm; do
  .venv/bin/python -m robustfg.train data=fashion_mnist data.root="${ROOT:-/usr/share/datasets/fashion-mnist}" loss=$loss \
    trainer.max_epochs=5 run_name=study trainer.enable_progress_bar=false
done
.venv/bin/python experiments/table.py outputs/fashion_mnist-{softmax,gm}/study
