"""A sample costs and gets the same alone and among others, for every attack of ours that a user can choose by name."""

import pytest
import torch
from every_preset import OURS, Tiny, images, preset, spent

pytestmark = pytest.mark.numeric

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])


def mixed():
    """Six images from wrong already to hardly within reach, and their labels."""
    model, image = Tiny().double().eval(), images(64, dtype=torch.float64)
    with torch.no_grad():
        logits = model(image).logits
    lead, label = logits.topk(2).values, logits.argmax(1)
    chosen = (lead[:, 0] - lead[:, 1]).argsort()[[0, 8, 16, 32, 48, 63]]
    label = label[chosen]
    label[2] = logits[chosen[2]].topk(2).indices[1]  # wrong already
    return model, image[chosen], label


@pytest.mark.parametrize("name", OURS)
def test_passes_and_images_of_a_sample_do_not_depend_on_the_others(name):
    model, image, label = mixed()
    attack = preset(name, dtype=torch.float64)
    together = spent(attack, model, image, label, INDEX)
    for row in range(len(label)):
        one = slice(row, row + 1)
        alone = spent(attack, model, image[one], label[one], INDEX[one])
        assert torch.allclose(alone[0], together[0][one], rtol=0, atol=1e-10)
        assert torch.equal(alone[1], together[1][one])
        assert torch.equal(alone[2], together[2][one])


def test_the_samples_are_of_mixed_difficulty():
    model, image, label = mixed()
    forwards = spent(preset("apgd_ce", dtype=torch.float64), model, image, label, INDEX)[1]
    assert len(set(forwards.tolist())) > 2
