"""Traps seen in other libraries that are nobody's single attack."""

from dataclasses import replace

import pytest
import torch
from every_preset import OURS, Tiny, composed, images, nodes, predicted, preset, register_schemas

from robustfg.attacks import FAB, Engine, Margin
from robustfg.attacks.minimum_norm.penalty import PenaltyAttack
from robustfg.cli.config import build

BALLS = ("Linf", "L2", "L1")
SEARCHED = [
    entry for entry in OURS if any(f"attacks.{ball}'" in str(nodes()[entry.values[0]]) for ball in BALLS)
    and entry.values[0] not in ("transfer", "universal")
]  # fmt: skip
BLIND = ("boundary", "hopskipjump", "features")
"""See no margin, or climb something else."""


def test_the_stages_of_autoattack_take_as_many_steps_as_published():
    """torchattacks' AutoAttack runs APGD and FAB with 10 steps."""
    register_schemas()
    attack = build(composed("attack=autoattack", "epsilon=1e-6")["autoattack"], "attack.autoattack")
    attack = attack.run_by(Engine(fold=False))  # a copy's word is asked again
    model, image = Tiny().eval(), images(1)  # six classes, so five targets; nobody is fooled so near
    attempts = list(attack.attempts(model, image, predicted(model, image)))
    backwards = [attempt.backwards.item() for attempt in attempts]
    assert backwards[:10] == [100] * 6 + [0] * 4
    assert 5 * 97 <= backwards[10] <= 5 * 100  # three looks at the end in place of two steps
    assert (backwards[11], attempts[11].forwards.item()) == (0, 5000)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_sample_that_stands_comes_back_as_the_worst_image_seen_and_not_clean(name):
    """auto-attack and adv-lib give clean copies back, so that what they store says nothing about robust samples."""
    model, image = Tiny().double().eval(), images(6, dtype=torch.float64)
    label, attack = predicted(model, image), preset(name, dtype=torch.float64)
    attack = attack.within(replace(attack.threat, epsilon=1e-4))
    if isinstance(attack, FAB | PenaltyAttack):  # long enough to find what is projected
        attack = replace(attack, steps=40)
    if isinstance(attack, PenaltyAttack):
        attack = replace(attack, initial_constant=10.0)
    found = attack(model, image, label)
    assert torch.equal(predicted(model, found), label)
    assert bool(((found - image).abs().amax((1, 2, 3)) > 1e-7).all())
    if name not in BLIND:
        assert bool((Margin()(model(found), label) > Margin()(model(image), label)).all())


@pytest.mark.filterwarnings("ignore:.*first gradient of")
@pytest.mark.parametrize("name", [entry.values[0] for entry in OURS])
def test_images_and_weights_may_be_of_different_types(name):
    for weights, pixels in ((torch.float64, torch.float32), (torch.float32, torch.float64), (torch.bfloat16,) * 2):
        pixels = torch.float32 if pixels == torch.bfloat16 else pixels
        model, image = Tiny().to(weights).eval(), images(4, dtype=pixels)
        with torch.no_grad():
            label = model(image.to(weights)).logits.argmax(1)
        attack = preset(name, dtype=pixels)
        (*_, attempt) = attack.attempts(model, image, label)
        assert attempt.image.dtype == pixels
        attack.threat.check(attempt.image, image)
        fooled = model(attempt.image.to(weights)).logits.argmax(1) != label
        looked = ~attempt.margin.isnan()
        assert torch.equal(fooled[looked], attempt.margin[looked] < 0) or weights == torch.bfloat16  # by the batch
