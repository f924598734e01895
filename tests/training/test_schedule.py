import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.core.errors import UserError
from robustfg.training import Constant, Cosine, MultiStep, Step

EPOCHS = 20


def rates_of_torch(scheduler, **options):
    """Learning rates at the whole epochs 0, 1, ... of a torch scheduler over a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = scheduler(optimizer, **options), []
    for _ in range(EPOCHS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "scheduler", "options"),
    [
        (Cosine(), torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": EPOCHS}),
        (Cosine(final=0.05), torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": EPOCHS, "eta_min": 0.05}),
        (Step(every=6), torch.optim.lr_scheduler.StepLR, {"step_size": 6}),
        (Step(every=1, gamma=0.9), torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.9}),
        (
            MultiStep(milestones=[5, 12, 12, 18], gamma=0.3),
            torch.optim.lr_scheduler.MultiStepLR,
            {"milestones": [5, 12, 12, 18], "gamma": 0.3},
        ),
        (Constant(), torch.optim.lr_scheduler.ConstantLR, {"factor": 1.0}),
    ],
)
def test_factors_at_whole_epochs_equal_those_of_torch(schedule, scheduler, options):
    factors = [schedule(epoch, EPOCHS) for epoch in range(EPOCHS + 1)]
    assert factors == pytest.approx(rates_of_torch(scheduler, **options), abs=1e-12)


def test_milestones_may_come_in_any_order():
    factors = [MultiStep(milestones=[15, 10])(epoch, EPOCHS) for epoch in (9.9, 10, 14.9, 15)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("schedule", [Constant, lambda **options: MultiStep(milestones=[15], **options)])
@settings(deadline=None)
@given(epoch=st.floats(0, 14))
def test_warmup_rises_linearly_from_zero_to_one(schedule, epoch):
    factor = schedule(warmup_epochs=4)(epoch, EPOCHS)
    assert factor == pytest.approx(epoch / 4 if epoch < 4 else 1.0, abs=1e-12)


@settings(deadline=None)
@given(epoch=st.floats(0, EPOCHS), final=st.floats(0, 1))
def test_cosine_starts_after_the_warmup_and_ends_at_its_final_value(epoch, final):
    factor = Cosine(warmup_epochs=4, final=final)(epoch, EPOCHS)
    angle = math.pi * (epoch - 4) / (EPOCHS - 4)
    expected = epoch / 4 if epoch < 4 else final + (1 - final) * math.cos(angle / 2) ** 2
    assert factor == pytest.approx(expected, abs=1e-12)


def test_cosine_stays_at_its_final_value_after_the_last_epoch():
    assert Cosine(final=0.1)(EPOCHS + 3, EPOCHS) == pytest.approx(0.1)


def test_cosine_survives_a_warmup_of_the_whole_training():
    factors = [Cosine(warmup_epochs=5)(epoch, 5) for epoch in (0, 2.5, 4.9)]
    assert factors == pytest.approx([0, 0.5, 0.98])


@pytest.mark.parametrize("epoch", [0.0, 0.99, 3.0])
def test_constant_is_one_without_warmup(epoch):
    assert Constant()(epoch, EPOCHS) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(warmup_epochs=-1),
        lambda: Cosine(warmup_epochs=-0.5),
        lambda: Step(every=3, warmup_epochs=-1),
        lambda: MultiStep(milestones=[3], warmup_epochs=-1),
    ],
)
def test_a_negative_warmup_is_refused_by_name(make):
    with pytest.raises(UserError, match="^warmup_epochs must be >= 0"):
        make()


@pytest.mark.parametrize("every", [0, -2])
def test_a_step_of_no_epochs_is_refused_by_name(every):
    with pytest.raises(UserError, match="^every must be > 0"):
        Step(every=every)
