"""The phases that the losses' option files bring, against the authors' schedules."""

import pytest
import torch
import torch.nn.functional as F
from commands import config_of

from robustfg.cli.assemble import phases_of
from robustfg.cli.config import CONF, build
from robustfg.core.types import Output


def plan_of(loss):
    return phases_of(config_of("train", f"loss={loss}")["loss"])


def stepped_first(rate, every, epochs):
    """The rate that every epoch trains with, where StepLR is stepped before it, as the released codes do."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler, rates = torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=0.1), []
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def rates_in(plan, group, names):
    """The rates of a group over the epochs of some phases."""
    rate = plan.rate(group, 0.0)
    return [rate(epoch) for epoch in range(plan.epochs) if plan.phases[plan.index(epoch)].name in names]


@pytest.mark.parametrize(("group", "rate"), [("backbone", 1e-4), ("add_on", 3e-3), ("prototypes", 3e-3)])
def test_protopnets_joint_rates_are_those_of_a_steplr_stepped_before_every_epoch(group, rate):
    found = rates_in(plan_of("protopnet"), group, ["joint", "joint_again"])
    assert found == pytest.approx(stepped_first(rate, 5, 16))


def told_of(phase):
    """Epochs, learning rates of what is trained, weight decays of what decays, coefficients, surveys."""
    return (
        phase.epochs, {group: rate for group, rate in phase.lr.items() if rate},
        {group: decay for group, decay in phase.weight_decay.items() if decay}, phase.coefficients, list(phase.surveys),
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["maxsep", "maxsep_released"])
def test_maximal_separations_phases_are_those_of_the_released_code(loss):
    plan, heads = plan_of(loss), {"add_on": 3e-3, "prototypes": 3e-3, "attention": 3e-3}
    decays = {"add_on": 1e-3, "attention": 1e-3}
    assert {phase.name: told_of(phase) for phase in plan.phases} == {
        "warm": (5, heads, decays, {"cluster": 0, "separation": 0}, []),
        "joint": (26, {"backbone": 1e-4, **heads}, {"backbone": 1e-3, **decays}, {}, []),
        "last_layer": (21, {"last_layer": 1e-4}, {}, {}, ["push"]),
    }
    groups = {"backbone", "last_layer", *heads}
    assert all(set(phase.lr) == groups for phase in plan.phases)  # what is left out would train at optimizer.lr
    for phase in plan.phases:  # and decay by optimizer.weight_decay
        assert set(phase.weight_decay) == {group for group, rate in phase.lr.items() if rate}
    assert rates_in(plan, "add_on", ["joint"]) == pytest.approx(stepped_first(3e-3, 10, 26))
    assert rates_in(plan, "add_on", ["joint"]) == pytest.approx([3e-3] * 9 + [3e-4] * 10 + [3e-5] * 7)
    assert rates_in(plan, "last_layer", ["last_layer"]) == pytest.approx([1e-4] * 7 + [1e-5] * 7 + [1e-6] * 7)
    assert [phase.frozen_norms for phase in plan.phases] == ([True] * 3 if loss == "maxsep" else [False, True, False])
    assert [phase.fresh_optimizer for phase in plan.phases] == [False, True, True]  # an optimizer of its own each


@pytest.mark.parametrize("loss", ["maxsep", "protopnet"])
@pytest.mark.parametrize("file", ["loss/{loss}.yaml", "data/augment/papers.yaml"])
def test_the_epochs_told_for_the_thirtyfold_set_stretch_every_phase_by_thirty(loss, file):
    plan = plan_of(loss)
    assert f"{30 * plan.epochs}" in (CONF / file.format(loss=loss)).read_text()
    assert plan.stretched(30 * plan.epochs).spans == tuple(30 * span for span in plan.spans)


def test_the_robust_stage_crafts_on_both_heads_from_the_first_step():
    config = config_of("train", "experiment=accv2020_robust")
    training = config["training"]
    assert (training["clean_epochs"], training["ramp_epochs"], training["clean_share"]) == (0, 0, 0.0)
    first = config_of("train", "experiment=accv2020")
    assert all(config[group] == first[group] for group in ("loss", "optimizer", "attack"))
    assert first["training"]["_target_"] == "robustfg.training.Standard"
    fast = build({"name": "fast", **training["attack"]["fast"]}, "training.attack.fast")
    heads = {name: torch.randn(4, 5, dtype=torch.float64) for name in ("attention", "prototype")}
    output, label = Output(logits=heads["prototype"], embedding=torch.zeros(4, 1), heads=heads), torch.arange(4)
    expected = sum(F.cross_entropy(logits, label, reduction="none") for logits in heads.values())
    assert torch.allclose(fast.objective(output, label), expected)
