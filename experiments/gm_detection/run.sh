#!/usr/bin/env bash
# softmax, gm and gm with MCAT on digits, Fashion-MNIST and birds, each with its detectors under three attackers and with
# unknown images. One thread: two to three hours. ROOT is the folder of Fashion-MNIST's IDX files. PART=train or
# PART=evaluate does one half, DATA=birds evaluates a part. Birds start from the backbone of experiments/rivals/run.sh,
# given as BACKBONE, because gm with its default ramps trains slowly on them from scratch.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
out=${OUT:-outputs}
root=${ROOT:-/usr/share/datasets/fashion-mnist}
backbone=${BACKBONE:-$out/weights/birds.safetensors}
quiet="trainer.enable_progress_bar=false output=$out"
digits="data=digits epsilon=16/255"
fashion="data=fashion_mnist data.root=$root trainer.limit_train_batches=200"
birds="data=birds model.weights=$(realpath "$backbone") optimizer.lr=0.02"
# MCAT on Fashion-MNIST scaled down: 10 steps of eps/4 craft its images instead of 40 of eps/6, and 16 epochs instead of 26.
scaled="training.attack.lkd.steps=10 training.attack.lkd.size=eps/4 training.clean_epochs=4 trainer.max_epochs=16"
train() { .venv/bin/python -m robustfg.train $quiet test=false "$@"; }
evaluate() { # data, run, detectors, unknown images
  .venv/bin/python -m robustfg.evaluate $quiet checkpoint="$out/$1/checkpoints/best.ckpt" run_name="detection-${1//\//-}" "detector=$2" \
    data.max_test_samples=96 evaluation.checks=32 "${@:3}"
}
if [[ ${PART:-train} == train ]]; then
  for loss in softmax gm; do
    train $digits loss=$loss run_name=detection
    train $fashion loss=$loss run_name=detection
    train $birds loss=$loss run_name=detection trainer.max_epochs=12
  done
  train $digits loss=gm training=mcat run_name=detection-mcat
  train $fashion loss=gm training=mcat run_name=detection-mcat $scaled
  train $birds loss=gm training=mcat run_name=detection-mcat
  train data=birds loss=gm_late_ramps run_name=detection # from scratch
fi
if [[ ${PART:-evaluate} == evaluate ]]; then
  for data in ${DATA:-digits birds fashion_mnist}; do
    case $data in
      digits) given="epsilon=16/255 unknown=fashion_mnist unknown.fashion_mnist.source.root=$root unknown.fashion_mnist.images=96" ;;
      fashion_mnist) given="epsilon=8/255 unknown=digits unknown.digits.images=96" ;;
      birds) given="epsilon=8/255 unknown=birds unknown.birds_near.images=96 unknown.birds_far.images=96" ;;
    esac
    evaluate $data-softmax/detection "[max_softmax,mahalanobis]" $given
    evaluate $data-gm/detection "[likelihood,mahalanobis]" $given
    evaluate $data-gm/detection-mcat "[likelihood,mahalanobis]" $given
    if [[ $data == birds ]]; then evaluate birds-gm_late_ramps/detection "[likelihood,mahalanobis]" $given; fi
  done
  .venv/bin/python experiments/gm_detection/table.py "$out"/evaluations/detection-*
fi
