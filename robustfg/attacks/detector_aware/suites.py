"""The attacks against a classifier and one of its detectors together: white box and black box."""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from robustfg.attacks.base import Attack
from robustfg.attacks.black_box.square import Square
from robustfg.attacks.composed.transfer import Transfer
from robustfg.attacks.detector_aware.lagrangian import Lagrangian, LagrangianSearch
from robustfg.attacks.detector_aware.selective import SelectivePGD
from robustfg.attacks.gradient.apgd import APGD, AutomaticAscent
from robustfg.attacks.gradient.apgd_l1 import L1APGD
from robustfg.attacks.gradient.feature_space import FeatureAttack, FeatureBank
from robustfg.attacks.gradient.pgd import GradientAttack
from robustfg.attacks.gradient.step_rules import Momentum
from robustfg.attacks.objectives.acceptance import Reading, ScoreOf, scale_of
from robustfg.attacks.objectives.joint import (
    FooledFirst,
    TargetedAndAccepted,
    TargetedAndNear,
    WrongAndAccepted,
    WrongAndNear,
)
from robustfg.attacks.objectives.logits import Margin, Objective
from robustfg.attacks.objectives.target_choice import TopClasses
from robustfg.attacks.objectives.targeted import TargetedObjective
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.attacks.threats.base import Threat
from robustfg.attacks.threats.lp import L1, L2, Linf
from robustfg.core.errors import UserError

TARGETS = 9
"""Classes that the targeted attack tries, as AutoAttack's."""
NEIGHBOURS = 5
"""Accepted images of wrong classes that feature matching tries, the nearest ones."""


class _Aim(NamedTuple):
    """What is attacked, and the common end of all attacks."""

    score: Reading
    tau: float
    lowest: float
    scale: float
    distances: bool

    @property
    def decision(self) -> WrongAndAccepted:
        return WrongAndAccepted(score=self.score, tau=self.lowest, scale=self.scale)

    def max_form(self, tau: float) -> Objective:
        if self.distances:
            return WrongAndNear(tau=tau, scale=self.scale)
        return WrongAndAccepted(score=self.score, tau=tau, scale=self.scale)

    def targeted(self) -> TargetedObjective:
        if self.distances:
            return TargetedAndNear(tau=self.tau, scale=self.scale)
        return TargetedAndAccepted(score=self.score, tau=self.tau, scale=self.scale)

    def named(self, attacks: Mapping[str, Attack], prefix: str) -> dict[str, Attack]:
        named = {f"{prefix}/{name}": attack for name, attack in attacks.items()}
        return {
            name: replace(attack, name=name, decision=self.decision, watch=self.score) for name, attack in named.items()
        }


def _aim(detector: str, tau: float, scale: float | None, lowest: float | None, distances: bool) -> _Aim:
    lowest = tau if lowest is None else lowest
    if not (isfinite(tau) and isfinite(lowest)):
        raise UserError(f"tau and lowest must be finite, got {tau} and {lowest}")
    if lowest > tau:
        raise UserError(f"lowest must be <= tau, got {lowest} > {tau}")
    return _Aim(ScoreOf(detector), tau, lowest, scale_of(tau, scale), distances)


def white_box(
    detector: str,
    *,
    threat: Threat,
    tau: float,
    scale: float | None = None,
    lowest: float | None = None,
    distances: bool = False,
    bank: FeatureBank | None = None,
    steps: int = 100,
    restarts: int = 2,
    seed: int = 0,
) -> dict[str, Attack]:
    """Attacks that differentiate the classifier and the detector, by name; what counts is their union per sample.

    All of them decide at ``lowest`` and watch the score, so that one run answers for every threshold from there on:
    a sample leaves when it is wrong and accepted at ``lowest``, and ``Attempt.least`` holds the least score it was
    wrong with. The max-forms aim at one threshold each, ``tau`` and ``lowest``: aimed at one that is out of reach they
    give the mistake up for the score. The selective, orthogonal and Lagrangian attacks lower the score of mistakes as
    far as it goes.

    Args:
        detector: its name in ``Output.scores``.
        threat: the allowed images: a norm ball. The orthogonal attack is left out in l1.
        tau: the threshold that is reported first.
        scale: unit of scores, such as the clean scores' deviation; None: tau, which must then be positive.
        lowest: the smallest threshold of interest; None: tau.
        distances: the logits are -D_k / 2 and the score is min_k D_k, for which the max-form is exact.
        bank: features of accepted training images (``FeatureBank.accepted``), to match; None: that attack is left out.
        steps: gradient steps of one climb.
        restarts: the first begins at the clean image, the others at random.
        seed: of the random numbers.
    """
    aim = _aim(detector, tau, scale, lowest, distances)
    climb = apgd_in(threat, steps, restarts, seed)
    attacks: dict[str, Attack] = {"max_form": replace(climb, objective=aim.max_form(aim.tau))}
    if aim.lowest < aim.tau:
        attacks["max_form_lowest"] = replace(climb, objective=aim.max_form(aim.lowest))
    attacks["targeted"] = replace(climb, objective=aim.targeted(), targets=TopClasses(count=TARGETS), restarts=1)
    selective = SelectivePGD(threat=threat, score=aim.score, steps=steps, restarts=restarts, seed=seed)
    attacks["selective"] = selective
    if isinstance(threat, Linf | L2):
        attacks["orthogonal"] = replace(selective, orthogonal=True)
    weighed = Lagrangian(score=aim.score, tau=aim.lowest, scale=aim.scale, weight=1.0)
    attacks["lagrangian"] = LagrangianSearch(threat=threat, objective=weighed, steps=steps, seed=seed)
    if bank is not None:
        attacks["features"] = FeatureAttack(
            threat=threat, bank=bank, steps=steps, moving=False, random_start=False, restarts=NEIGHBOURS, seed=seed
        )
    return aim.named(attacks, f"white_box/{detector}")


def black_box(
    detector: str,
    *,
    threat: Threat,
    tau: float,
    scale: float | None = None,
    lowest: float | None = None,
    surrogates: Mapping[str, Model] | None = None,
    queries: int = 5000,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
) -> dict[str, Attack]:
    """Attacks that only see the classifier's logits and the detector's score, or not even these, by name.

    Square asks for both and first looks for a wrong class, then for a lower score. Transfer attacks craft the last
    iterate of a momentum attack on a surrogate that knows no detector, and ask once. They decide and watch as
    ``white_box`` does.

    Args:
        detector: its name in ``Output.scores``.
        threat: the allowed images: a norm ball.
        tau: as of ``white_box``.
        scale: as of ``white_box``.
        lowest: as of ``white_box``.
        surrogates: other classifiers by name, such as one of another seed.
        queries: of Square, per restart.
        steps: on a surrogate.
        restarts: of each attack.
        seed: of the random numbers.
    """
    aim = _aim(detector, tau, scale, lowest, False)
    ranking = FooledFirst(score=aim.score, tau=aim.lowest, scale=aim.scale)
    attacks: dict[str, Attack] = {
        "square": Square(threat=threat, objective=ranking, queries=queries, restarts=restarts, seed=seed)
    }
    for name, surrogate in (surrogates or {}).items():
        crafted = GradientAttack(
            threat=threat, step=Momentum(size="eps/4"), steps=steps, objective=Margin(), random_start=True,
            last_iterate=True, restarts=restarts, seed=seed,
        )  # fmt: skip
        attacks[f"transfer_{name}"] = Transfer(attack=crafted, surrogate=surrogate, surrogate_name=name)
    return aim.named(attacks, f"black_box/{detector}")


def apgd_in(threat: Threat, steps: int, restarts: int, seed: int) -> AutomaticAscent:
    """APGD for a norm ball; the first restart begins at the clean image, the others at random."""
    if isinstance(threat, L1):
        return L1APGD(threat=threat, steps=steps, restarts=restarts, seed=seed, random_start=False)
    return APGD(threat=threat, steps=steps, restarts=restarts, seed=seed, random_start=False)
