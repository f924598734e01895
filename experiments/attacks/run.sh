#!/usr/bin/env bash
# An undefended classifier of birds under the built-in attacks. One thread: about a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
attacks=fgsm,bim,mim,pgd,apgd_ce,apgd_dlr,apgd_t,fab_t,deepfool_linf,fmn,square,patch,frame,spatial
attacks=$attacks,nes,spsa,pgd_l2,apgd_l2,fab_l2,cw,hopskipjump,boundary,apgd_l1,fab_l1,ead,pgd_l0,sparse_rs
.venv/bin/python -m robustfg.train run_name=study-attacks test=false trainer.enable_progress_bar=false
.venv/bin/python -m robustfg.evaluate checkpoint=outputs/birds-softmax/study-attacks/checkpoints/best.ckpt "attack=[$attacks]" \
  data.max_test_samples=96 evaluation.checks=0 run_name=study-attacks trainer.enable_progress_bar=false
