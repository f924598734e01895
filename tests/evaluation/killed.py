"""Evaluates a stored toy classifier twice: once undisturbed, once killed at random moments until it is done."""

import functools
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toy import CLASSES, Convolutions, data_module, evaluate, suite

from robustfg.attacks import APGD, Cascade, Linf, Square, TargetedDLR, TopClasses
from robustfg.classifier import Classifier
from robustfg.evaluation.pace import Pace
from robustfg.losses import Softmax

BALL = Linf(epsilon="8/255")


def cascade():
    """Six rounds: two restarts, three targets, and one without gradients."""
    weak = suite(threat=Linf(epsilon="5/255"))["pgd"].within(BALL)
    stages = {
        "pgd": type(weak)(name="pgd", threat=BALL, step=weak.step, steps=2, restarts=2, random_start=True),
        "apgd_t": APGD(threat=BALL, steps=5, objective=TargetedDLR(), targets=TopClasses(count=3)),
        "square": Square(threat=BALL, queries=60),
    }
    return Cascade(name="cascade", attacks=stages)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    random.seed(0)
    few = functools.partial(data_module, max_test_samples=24, batch_size=12)
    Pace.of = classmethod(lambda cls, model, image: Pace(1.0, 8))  # the toy is so small that a batch is one portion
    for run in ("whole", "killed"):
        done, kills = False, 0
        while not done:
            child = os.fork()
            if child == 0:
                model = Classifier(
                    backbone=Convolutions(), loss=Softmax(channels=16, num_classes=CLASSES), num_classes=CLASSES
                )
                model.load_state_dict(torch.load(folder / "weights.pt"))
                evaluate(model.eval(), folder / run, attacks={"cascade": cascade()}, checks=0, data=few())
                os._exit(0)
            if run == "killed" and kills < 6:
                time.sleep(random.uniform(0.05, 0.15 + 0.1 * kills))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            done, kills = status == 0, kills + (status == signal.SIGKILL)
            assert status in (0, signal.SIGKILL), status
    print("kills", kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
