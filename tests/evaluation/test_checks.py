"""Faults planted in a model or an attack, and the checks that must find them."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from toy import data_module, evaluate, row, suite

from robustfg.attacks import APGD, L1, L1APGD, L2, CrossEntropy, GradientAttack, Linf, Margin, Steepest
from robustfg.core.types import Output, decision_margin, logits_of
from robustfg.evaluation.checks import Facts, counted_check, judge, verdict
from robustfg.evaluation.checks.probes import largest_balls, reference_attacks
from robustfg.evaluation.records import CLEAN, table_of
from robustfg.evaluation.remarks import remarks_of
from robustfg.evaluation.statistics import counted, upper_limit
from robustfg.reporting import print_summary, write_page


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


@pytest.mark.parametrize(
    ("count", "n", "everything", "status"),
    [
        (0, 4, False, "inconclusive"), (0, 4, True, "inconclusive"), (0, 28, False, "inconclusive"),
        (0, 29, False, "pass"), (0, 11, True, "pass"), (0, 10, True, "inconclusive"), (1, 29, False, "inconclusive"),
        (0, 128, False, "pass"), (3, 128, False, "pass"), (4, 128, False, "fail"), (0, 0, True, "inconclusive"),
    ],
)  # fmt: skip
def test_a_check_passes_only_with_the_power_to_fail(count, n, everything, status):
    found = counted_check("x", count, n, "all is well", everything=everything)
    assert (found.status, found.count, found.n) == (status, count, n)
    if count == 0:
        assert upper_limit(0, n) == pytest.approx(1 - 0.05 ** (1 / n) if n else 1)
    if status == "inconclusive" and n:
        assert f"{100 * upper_limit(count, n):.1f} %" in found.detail


def test_four_images_verify_nothing_and_say_what_they_could_have_seen(classifier, tmp_path):
    for data, checks in ((data_module(max_test_samples=4), 4), (data_module(), 4)):
        summary = evaluate(classifier, tmp_path / str(len(data.samples("test"))), data=data, checks=checks)
        found = {check["name"]: check for check in summary["checks"]}
        assert summary["verdict"] == "upper bound, unverified"
        for name in ("determinism", "finite_difference", "unbounded", "reference", "gradient_free"):
            assert found[name]["status"] == "inconclusive"
        assert "0 of 4 cannot exclude a rate of 52.7 % (95 %)" in found["determinism"]["detail"]


def remarks(labels, correct, robust, classes):
    rows = [row(i, CLEAN, 0, True, label=label) for i, label in enumerate(labels)]
    n = len(labels)
    counts = {"n": n, "clean": counted(correct, n), "worst_case": counted(robust, n)}
    return " ".join(remarks_of(table_of(rows), counts, classes, [], Facts(0, 0, None)))


def test_an_accuracy_no_better_than_guessing_is_said_beside_the_verdict():
    even = [0, 1, 2, 3, 4] * 20
    assert remarks(even, 90, 40, 5) == ""
    assert "right on 20.0 %: worst case 10.0 % (10 of 100)" in remarks(even, 90, 10, 5)
    assert "20.0 %: clean 26.0 % (26 of 100), worst case 0.0 % (0 of 100)" in remarks(even, 26, 0, 5)
    assert "naming the most frequent class, which is right on 90.0 %: clean 91.0 %" in remarks(
        [0] * 90 + [1] * 10, 91, 80, 2
    )
    assert remarks([3] * 50, 50, 50, 5).startswith("Only one class is among the 50 samples. No better than")
    assert "No sample was attacked: all are wrong when clean." in remarks(even, 0, 0, 5)


def test_a_model_that_is_always_wrong_is_not_verified_and_page_and_terminal_say_why(classifier, tmp_path):
    classifier.loss = Head(classifier.loss, lambda logits: logits.roll(1, 1))
    summary = evaluate(classifier, tmp_path, checks=101)
    assert (summary["clean"]["correct"], summary["verdict"]) == (0, "upper bound, unverified")
    found = statuses(summary)
    assert all(
        found[name] == "inconclusive" for name in ("budget", "dead_gradient", "one_step", "reference", "unbounded")
    )
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(summary, tmp_path / "page", console)
    for shown in (console.export_text(), write_page(tmp_path).read_text()):
        assert "No sample was attacked: all are wrong when clean." in shown
        assert "clean 0.0 % (0 of 101)" in shown


def test_a_suite_of_one_step_attacks_is_not_compared_with_itself(classifier, tmp_path):
    summary = evaluate(classifier, tmp_path, attacks={"fgsm": suite()["fgsm"]})
    (found,) = (check for check in summary["checks"] if check["name"] == "one_step")
    assert (found["status"], found["n"]) == ("inconclusive", 0)
    assert "every attack of the suite takes one step only" in found["detail"]
    assert summary["verdict"] == "upper bound, unverified"


def judged(rows, attacks, facts=None):
    n = sum(r["attack"] == CLEAN for r in rows)
    return {check.name: check for check in judge(table_of(rows), attacks, facts or Facts(0, 0, n))}


def given(*units, n=40):
    """Rows of as many right samples: of every attack its name, which samples it breaks, and what else its rows hold."""
    rows = [row(i, CLEAN, 0, True, forwards=1, backwards=0) for i in range(n)]
    return rows + [row(i, name, 0, i not in broken, **extra) for name, broken, extra in units for i in range(n)]


LINF, EUCLID = suite()["pgd"], suite(threat=L2(epsilon=3.0))["pgd"]
HALF, FREE = range(20), {"backwards": 0}


def test_a_perturbation_without_a_size_is_outside_the_budget():
    for norm, status in ((0.03, "pass"), (0.04, "fail"), (float("nan"), "fail")):
        assert judged(given(("pgd", (), {"norm": norm})), {"pgd": LINF})["budget"].status == status


def test_samples_on_the_border_excuse_no_difference_of_the_clean_accuracies():
    for near, differing, status in ((0, 0, "pass"), (0, 1, "fail"), (40, 0, "pass"), (40, 20, "inconclusive")):
        rows = [r | {"borderline": r["index"] < near} for r in given(("pgd", (), {}))]
        assert judged(rows, {"pgd": LINF}, Facts(0, 0, 40 - differing))["same_clean"].status == status


def test_samples_that_are_wrong_when_clean_do_not_dilute_saturation():
    rows = [row(i, CLEAN, 0, i < 30, margin=100.0 if i < 30 else -1.0) for i in range(6_000)]
    found = judged(rows, only_cross_entropy())["saturation"]
    assert (found.status, found.count, found.n) == ("fail", 30, 30)


def test_a_sample_that_several_one_step_attacks_break_counts_once():
    fast = suite()["fgsm"]
    attacks = {"a": fast, "b": replace(fast, threat=Linf(epsilon="4/255")), "pgd": LINF}
    found = judged(given(("a", range(40), {}), ("b", range(40), {}), ("pgd", (), {})), attacks)["one_step"]
    assert (found.status, found.count, found.n) == ("fail", 40, 40)


@pytest.mark.parametrize(("kind", "extra"), [("reference", {}), ("one_step", {}), ("gradient_free", FREE)])
def test_a_strong_attack_in_another_ball_hides_no_weak_one(kind, extra):
    probe = f"check:{kind}_linf"
    attacks = {"pgd": LINF, "l2": EUCLID, probe: replace(LINF, name=probe)}
    rows = given(("pgd", (), {}), ("l2", range(40), {}), (probe, HALF, extra))
    assert (judged(rows, attacks)[kind].status, judged(rows, attacks)[kind].count) == ("fail", 20)
    rows = given(("pgd", HALF, {}), ("l2", (), {}), (probe, HALF, extra))
    assert (judged(rows, attacks)[kind].status, judged(rows, attacks)[kind].n) == ("pass", 40)


def test_a_sample_that_falls_before_the_first_gradient_was_not_attacked_without_gradients():
    rows = given(("pgd", (), {}))
    lucky = [r | {"backwards": 0} if (r["attack"], r["index"]) == ("pgd", 0) else r for r in rows]
    found = judged(lucky, {"pgd": LINF})["gradient_free"]
    assert (found.status, found.n) == ("inconclusive", 0)


def test_of_two_checks_of_one_name_both_count():
    good, bad = counted_check("x", 0, 40, ""), counted_check("x", 40, 40, "")
    assert verdict([good]) == "verified"
    assert {verdict([good, bad]), verdict([bad, good]), verdict([])} == {"upper bound, unverified"}
