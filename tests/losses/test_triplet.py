import pytest
import torch
import torch.nn.functional as F

from robustfg.errors import UserError
from robustfg.losses import Triplet


def naive(feature, label, margin, mining):
    unit = feature / feature.norm(dim=1, keepdim=True)
    distance = [[float(((a - b) ** 2).sum()) for b in unit] for a in unit]
    losses = []
    for a in range(len(label)):
        negatives = [distance[a][n] for n in range(len(label)) if label[n] != label[a]]
        positives = [distance[a][p] for p in range(len(label)) if label[p] == label[a] and p != a]
        if not negatives or not positives:
            continue
        if mining == "hard":
            losses.append(max(0.0, margin + max(positives) - min(negatives)))
            continue
        for positive in positives:
            beyond = [n for n in negatives if n > positive]
            losses.append(max(0.0, margin + positive - (min(beyond) if beyond else max(negatives))))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
@pytest.mark.parametrize("seed", range(5))
def test_triplets_are_those_of_a_loop_over_anchors(mining, seed):
    generator = torch.Generator().manual_seed(seed)
    module = Triplet(channels=3, num_classes=3, weight=0.7, margin=0.3, mining=mining)
    feature_map = torch.randn(9, 3, 2, 2, generator=generator)
    label = torch.randint(3, (9,), generator=generator)
    output = module(feature_map)
    terms = module.loss(output, label)
    expected = naive(output.embedding.detach().double(), label.tolist(), 0.3, mining)
    assert float(terms["triplet"].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    entropy = F.cross_entropy(output.logits, label)
    assert float(terms["loss"].detach()) == pytest.approx(float(entropy.detach()) + 0.7 * expected, rel=1e-4)


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
def test_a_batch_without_triplets_is_plain_cross_entropy_with_a_finite_gradient(mining):
    module = Triplet(channels=3, num_classes=3, mining=mining)
    feature_map = torch.randn(4, 3, 1, 1, requires_grad=True)
    for label in (torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, 1])[:1]):
        terms = module.loss(module(feature_map[: len(label)]), label)
        assert terms["triplet"] == 0
        (gradient,) = torch.autograd.grad(terms["loss"], feature_map, allow_unused=True)
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("option", "value"), [("margin", -0.1), ("weight", -1), ("mining", "easy")])
def test_options_that_make_no_sense_are_refused(option, value):
    with pytest.raises(UserError, match=f"loss.{option}"):
        Triplet(channels=3, num_classes=3, **{option: value})


def test_distances_are_told_apart_under_mixed_precision():
    torch.manual_seed(0)
    module = Triplet(channels=8, num_classes=2, margin=0.02)
    feature = 1 + 0.05 * torch.randn(12, 8, 1, 1)
    label = torch.arange(12) % 2
    exact = module.loss(module(feature), label)["triplet"]
    with torch.autocast("cpu", torch.bfloat16):
        half = module.loss(module(feature), label)["triplet"]
    assert exact > 0
    assert torch.allclose(half, exact, rtol=1e-3)
