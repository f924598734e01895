#!/usr/bin/env bash
# Every adversarial regime on the built-in birds, then attack=standard on a part of the test split. Two CPU cores: about half an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
for regime in adversarial mart trades fast free awp; do
  .venv/bin/python -m robustfg.train training=$regime run_name=study-$regime test=false trainer.enable_progress_bar=false
  .venv/bin/python -m robustfg.evaluate checkpoint=outputs/birds-softmax/study-$regime/checkpoints/best.ckpt attack=standard \
    data.max_test_samples=96 evaluation.checks=32 run_name=study-$regime trainer.enable_progress_bar=false
done
.venv/bin/python experiments/table.py outputs/evaluations/study-{adversarial,mart,trades,fast,free,awp}
