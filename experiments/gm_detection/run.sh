#!/usr/bin/env bash
# softmax, gm and gm with MCAT on digits, Fashion-MNIST and birds, each with its detectors under three attackers. One thread: two hours.
# ROOT is the folder of Fashion-MNIST's IDX files. PART=train or PART=evaluate does one half. Birds start from the backbone of
# experiments/rivals/run.sh, given as BACKBONE, because gm trains slowly on them from scratch.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
out=${OUT:-outputs}
root=${ROOT:-/usr/share/datasets/fashion-mnist}
backbone=${BACKBONE:-$out/weights/birds.safetensors}
quiet="trainer.enable_progress_bar=false output=$out"
# MCAT scaled down: 10 steps of eps/4 craft its images instead of 40 of eps/6, 4 clean epochs instead of 60, then 4 to set in and 8 more.
mcat="loss=gm training=mcat training.attack.lkd.steps=10 training.attack.lkd.size=eps/4 training.clean_epochs=4 trainer.max_epochs=16"
digits="data=digits epsilon=16/255"
fashion="data=fashion_mnist data.root=$root trainer.limit_train_batches=200"
birds="data=birds model.weights=$(realpath "$backbone") optimizer.lr=0.02"
train() { .venv/bin/python -m robustfg.train $quiet test=false "$@"; }
evaluate() { # data, folder, detectors
  .venv/bin/python -m robustfg.evaluate $quiet checkpoint="$out/$1/checkpoints/best.ckpt" run_name="detection-${1//\//-}" "detector=$2" \
    data.max_test_samples=96 evaluation.checks=32 evaluation.detection.steps=30 evaluation.detection.queries=300 "${@:3}"
}
if [[ ${PART:-train} == train ]]; then
  for loss in softmax gm; do
    train $digits loss=$loss run_name=detection
    train $fashion loss=$loss run_name=detection
    train $birds loss=$loss run_name=detection trainer.max_epochs=12
  done
  train $digits $mcat run_name=detection-mcat
  train $fashion $mcat run_name=detection-mcat
  train $birds $mcat run_name=detection-mcat
fi
if [[ ${PART:-evaluate} == evaluate ]]; then
  for data in digits fashion_mnist birds; do
    radius=$([[ $data == digits ]] && echo 16/255 || echo 8/255)
    evaluate $data-softmax/detection "[max_softmax,mahalanobis]" epsilon=$radius
    evaluate $data-gm/detection "[likelihood,mahalanobis]" epsilon=$radius
    evaluate $data-gm/detection-mcat "[likelihood,mahalanobis]" epsilon=$radius
  done
  .venv/bin/python experiments/gm_detection/table.py "$out"/evaluations/detection-*
fi
