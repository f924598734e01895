"""An attack holds no more memory for being longer."""

from dataclasses import replace

import pytest
from every_preset import Tiny, images, predicted
from torch.profiler import ProfilerActivity, profile

from robustfg.attacks import APGD, CrossEntropy, Engine, GradientAttack, Linf, Square

HARD = Linf(epsilon=1e-6)  # nobody is fooled, so that nobody leaves and every step is taken
SLACK = 4096
"""Bytes: less than 150 steps add that keep a single number of every sample."""


def peak_bytes(attack, model, image, label):
    """Most that the tensors of the attack held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        list(attack.attempts(model, image, label))
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("engine", [Engine(), Engine(fold=False, fixed_batch=4)], ids=["folded", "fixed batch"])
@pytest.mark.parametrize(
    "attack",
    [
        GradientAttack(threat=HARD),
        GradientAttack(threat=HARD, random_start=True, last_iterate=True, objective=CrossEntropy()),
        APGD(threat=HARD),
        Square(threat=HARD),
    ],
    ids=["PGD, worst iterate", "PGD, last iterate", "APGD", "Square"],
)
def test_a_hundred_and_fifty_steps_more_hold_no_more(attack, engine):
    model, image = Tiny().eval(), images(8)
    label = predicted(model, image)
    # Square draws other numbers for smaller squares, which come later.
    length, few = ("queries", 200) if isinstance(attack, Square) else ("steps", 10)
    short, long = (replace(attack, engine=engine, **{length: steps}) for steps in (few, few + 150))
    list(short.attempts(model, image, label))  # folds the model, which stays with it
    few, many = (peak_bytes(made, model, image, label) for made in (short, long))
    assert few > 0
    assert many <= few + SLACK
