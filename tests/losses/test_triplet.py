import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import Triplet
from robustfg.losses.triplet import semi_hard

pytestmark = pytest.mark.numeric


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
def test_half_precision_around_does_not_reach_the_distances(mining):
    module = Triplet(channels=8, num_classes=3, mining=mining)
    feature_map = 1 + 0.1 * torch.randn(9, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    label, output = torch.arange(9) % 3, module(feature_map)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.loss(output, label)["triplet"]
    assert torch.equal(found, module.loss(output, label)["triplet"])


def test_semi_hard_triplets_hold_nothing_larger_than_the_table_of_distances():
    label = torch.arange(60) % 2  # 30 positives an anchor
    feature, kept = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        semi_hard(torch.cdist(feature, feature), label[:, None] == label)
    assert 0 < max(kept) <= 61 * 60


def test_the_gradient_of_semi_hard_triplets_is_that_of_a_loop_over_pairs():
    label = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])
    feature = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    distance = (feature[:, None] - feature).square().sum(2)
    positive, negative = semi_hard(distance, label[:, None] == label)
    expected = []
    for a, p in ((a, p) for a in range(8) for p in range(8) if a != p and label[a] == label[p]):
        others = distance[a][label != label[a]]
        beyond = others[others > distance[a, p]]
        expected.append((distance[a, p], beyond.min() if len(beyond) else others.max()))
    ours, theirs = (positive - 2 * negative).sum(), sum(p - 2 * n for p, n in expected)
    assert torch.allclose(positive, torch.stack([p for p, _ in expected]))
    assert torch.allclose(*(torch.autograd.grad(total, feature, retain_graph=True)[0] for total in (ours, theirs)))


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
