"""Evaluates a stored toy classifier twice: once undisturbed, once killed around its commits until it is done."""

import functools
import os
import signal
import sys
from pathlib import Path

import torch
from toy import CLASSES, Convolutions, data_module, evaluate, suite

from robustfg.attacks import APGD, Cascade, Linf, Square, TargetedDLR, TopClasses
from robustfg.classifier import Classifier
from robustfg.evaluation.pace import Pace
from robustfg.evaluation.records import RecordStore
from robustfg.losses import Softmax

BALL = Linf(epsilon="8/255")
KILLS = 6


def cascade():
    """Six rounds: two restarts, three targets, and one without gradients."""
    weak = suite(threat=Linf(epsilon="5/255"))["pgd"].within(BALL)
    stages = {
        "pgd": type(weak)(name="pgd", threat=BALL, step=weak.step, steps=2, restarts=2, random_start=True),
        "apgd_t": APGD(threat=BALL, steps=5, objective=TargetedDLR(), targets=TopClasses(count=3)),
        "square": Square(threat=BALL, queries=60),
    }
    return Cascade(name="cascade", attacks=stages)


def dies_at(commit, *, before):
    """Kills this process before or after so many commits of rows."""
    real, seen = RecordStore.add, []

    def add(store, rows, perturbations):
        seen.append(len(rows))
        if before and len(seen) == commit:
            os.kill(os.getpid(), signal.SIGKILL)
        real(store, rows, perturbations)
        if len(seen) == commit:
            os.kill(os.getpid(), signal.SIGKILL)

    RecordStore.add = add


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    few = functools.partial(data_module, max_test_samples=24, batch_size=12)
    Pace.of = classmethod(lambda cls, model, image: Pace(1.0, 8))  # the toy is so small that a batch is one portion
    for run in ("whole", "killed"):
        done, kills = False, 0
        while not done:
            child = os.fork()
            if child == 0:
                if run == "killed" and kills < KILLS:
                    dies_at(1 + kills % 3, before=kills % 2 == 0)
                model = Classifier(
                    backbone=Convolutions(), loss=Softmax(channels=16, num_classes=CLASSES), num_classes=CLASSES
                )
                model.load_state_dict(torch.load(folder / "weights.pt"))
                evaluate(model.eval(), folder / run, attacks={"cascade": cascade()}, checks=0, data=few())
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            done, kills = status == 0, kills + (status == signal.SIGKILL)
            assert status in (0, signal.SIGKILL), status
    print("kills", kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
