"""Attacks on classifier and detector together that check the suite's own: no option weakens them."""

from dataclasses import replace

from robustfg.attacks import Attack, Square, Threat
from robustfg.attacks.detector_aware.suites import apgd_in
from robustfg.attacks.objectives.acceptance import ScoreOf
from robustfg.attacks.objectives.joint import FooledFirst, WrongAndAccepted
from robustfg.evaluation.checks.probes import PREFIX

REFERENCE = f"{PREFIX}joint_reference"
STEPS, STARTS, QUERIES = 100, 3, 1000


def joint_references(detector: str, threat: Threat, *, tau: float, scale: float, seed: int) -> dict[str, Attack]:
    """APGD on the max-form from the clean image and two random ones, and Square, by name; run on a few samples.

    The max-form reads the score, also where the head's distances allow one without it: a fault there is found here.

    Args:
        detector: its name.
        threat: the allowed images: a norm ball.
        tau: the headline threshold.
        scale: unit of the score.
        seed: of the random starts and queries.
    """
    score = ScoreOf(detector)
    passed = WrongAndAccepted(score=score, tau=tau, scale=scale)
    ranking = FooledFirst(score=score, tau=tau, scale=scale)
    attacks: dict[str, Attack] = {
        "max_form": replace(apgd_in(threat, STEPS, STARTS, seed), objective=passed),
        "square": Square(threat=threat, objective=ranking, queries=QUERIES, seed=seed),
    }
    named = {f"{REFERENCE}/{detector}/{name}": attack for name, attack in attacks.items()}
    return {name: replace(attack, name=name, decision=passed, watch=score) for name, attack in named.items()}
