"""Faults planted in a model or an attack, and the checks that must find them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import evaluate, suite

from robustfg.attacks import APGD, L1, L1APGD, L2, CrossEntropy, GradientAttack, Linf, Margin, Steepest
from robustfg.evaluation.checks.probes import largest_balls, reference_attacks
from robustfg.types import Output, decision_margin, logits_of


class Head(nn.Module):
    """The classifier's loss module with its logits changed."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, feature_map):
        output = self.inner(feature_map)
        return Output(logits=self.change(output.logits), embedding=output.embedding)

    def anomaly(self, output):
        return self.inner.anomaly(output)

    def evidence(self, feature_map, output):
        return self.inner.evidence(feature_map, output)


class Front(nn.Module):
    """The classifier's backbone with its input changed."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, image):
        return self.inner(self.change(image))


class Shattered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image):
        return image.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.randn_like(gradient) * gradient.abs().mean()


class WrongWay(Margin):
    def __call__(self, output, label):
        return decision_margin(logits_of(output), label)


def only_cross_entropy():
    return {"pgd": GradientAttack(name="pgd", threat=Linf(epsilon="8/255"), step=Steepest(size="eps/4"), steps=10,
                                  objective=CrossEntropy())}  # fmt: skip


def statuses(summary):
    return {check["name"]: check["status"] for check in summary["checks"]}


def test_a_sound_evaluation_passes_everything_that_was_run(classifier, tmp_path):
    summary = evaluate(classifier, tmp_path)
    assert set(statuses(summary).values()) == {"pass"}
    assert summary["verdict"] == "verified"


def test_scaled_logits_under_cross_entropy_are_found(classifier, tmp_path):
    classifier.loss = Head(classifier.loss, lambda logits: logits * 1e4)
    found = statuses(evaluate(classifier, tmp_path, attacks=only_cross_entropy()))
    assert (found["dead_gradient"], found["saturation"], found["reference"]) == ("fail", "fail", "fail")


def test_quantised_input_is_found(classifier, tmp_path):
    classifier.backbone = Front(classifier.backbone, lambda image: (image * 16).round() / 16)
    found = statuses(evaluate(classifier, tmp_path))
    assert (found["dead_gradient"], found["finite_difference"], found["unbounded"]) == ("fail", "fail", "fail")
    assert found["gradient_free"] == "fail"


def test_shattered_gradients_are_found(classifier, tmp_path):
    classifier.backbone = Front(classifier.backbone, Shattered.apply)
    assert statuses(evaluate(classifier, tmp_path))["finite_difference"] == "fail"


def test_steps_too_short_are_found(classifier, tmp_path):
    attacks = {"pgd": GradientAttack(name="pgd", threat=Linf(epsilon="8/255"), step=Steepest(size="eps/400"), steps=10)}
    assert statuses(evaluate(classifier, tmp_path, attacks=attacks))["reference"] == "fail"


def test_an_attack_in_the_wrong_direction_is_found(classifier, tmp_path):
    attacks = suite()
    attacks["pgd"] = GradientAttack(
        name="pgd", threat=Linf(epsilon="8/255"), step=Steepest(size="eps/4"), steps=10, objective=WrongWay()
    )
    found = statuses(evaluate(classifier, tmp_path, attacks=attacks))
    assert found["one_step"] == "fail"


@pytest.mark.parametrize("ball", [Linf(epsilon="8/255"), L2(epsilon=0.5), L1(epsilon=6)], ids=["linf", "l2", "l1"])
def test_the_reference_is_apgd_on_two_objectives_in_the_suites_own_ball(ball):
    references = reference_attacks(largest_balls([ball, replace(ball, epsilon=ball.radius / 2)]))
    assert {type(attack) for attack in references} == {L1APGD if ball.norm == "l1" else APGD}
    assert {attack.describe()["objective"] for attack in references} == {"margin", "cross_entropy"}
    assert {attack.threat.radius for attack in references} == {ball.radius}


def test_a_suite_without_a_one_step_attack_is_compared_with_the_probes_own(classifier, tmp_path):
    weak = {"pgd": GradientAttack(name="pgd", threat=Linf(epsilon="8/255"), step=Steepest(size="eps/400"), steps=10)}
    assert statuses(evaluate(classifier, tmp_path / "weak", attacks=weak))["one_step"] == "fail"
    strong = {"pgd": suite()["pgd"]}
    assert statuses(evaluate(classifier, tmp_path / "strong", attacks=strong))["one_step"] == "pass"


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda logits: logits.softmax(1), "logits"),
        (lambda logits: logits + torch.randn_like(logits), "determinism"),
    ],
)
def test_what_makes_numbers_meaningless_makes_the_evaluation_invalid(classifier, tmp_path, change, check):
    classifier.loss = Head(classifier.loss, change)
    summary = evaluate(classifier, tmp_path)
    assert statuses(summary)[check] == "fail"
    assert summary["verdict"] == "invalid"


def test_without_checks_nothing_is_verified(classifier, tmp_path):
    summary = evaluate(classifier, tmp_path, checks=0)
    assert summary["checks"] == []
    assert summary["verdict"] == "upper bound, unverified"
