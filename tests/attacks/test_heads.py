import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.attacks import (
    CrossEntropy,
    GradientAttack,
    Linf,
    Margin,
    NearestWrongCentre,
    NearestWrongPrototype,
    OnHead,
    Steepest,
    Summed,
)
from robustfg.core.errors import UserError
from robustfg.core.types import Output
from robustfg.losses.gm import GaussianMixture

SEEDS = st.integers(0, 10**6)


def output(seed=0, count=5, classes=4, prototypes=1):
    generator = torch.Generator().manual_seed(seed)
    numbers = 10 * torch.randn(3, count, classes, generator=generator, dtype=torch.float64)
    similarity = torch.randn(count, classes * prototypes, generator=generator, dtype=torch.float64)
    return Output(logits=numbers[0], embedding=numbers[2], heads={"attention": numbers[1], "similarity": similarity})


def labels(seed, count=5, classes=4):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


# --- Heads


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_an_objective_on_a_head_reads_that_heads_logits(seed):
    given_, label = output(seed), labels(seed)
    on_head = OnHead(objective=CrossEntropy(), head="attention")(given_, label)
    expected = F.cross_entropy(given_.heads["attention"], label, reduction="none")
    assert torch.allclose(on_head, expected, rtol=0, atol=1e-12)
    wrong = OnHead(objective=Margin(), head="attention")(given_, label) > 0
    assert torch.equal(wrong, given_.heads["attention"].argmax(1) != label)


def test_a_sum_of_objectives_is_their_sum():
    given_, label = output(), labels(0)
    both = Summed(objectives=[CrossEntropy(), OnHead(objective=CrossEntropy(), head="attention"), Margin()])
    expected = F.cross_entropy(given_.logits, label, reduction="none")
    expected = expected + F.cross_entropy(given_.heads["attention"], label, reduction="none") + Margin()(given_, label)
    assert torch.allclose(both(given_, label), expected, rtol=0, atol=1e-12)
    assert both.name == "cross_entropy + cross_entropy on attention + margin"


def test_the_gradient_of_a_sum_reaches_both_heads():
    leaf = torch.zeros(3, 2, 4, dtype=torch.float64, requires_grad=True)
    summed = Summed(objectives=[CrossEntropy(), OnHead(objective=CrossEntropy(), head="b")])
    value = summed(Output(logits=leaf[:, 0], embedding=leaf[:, 0], heads={"b": leaf[:, 1]}), torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    expected = 0.25 - F.one_hot(torch.tensor([0, 1, 2]), 4).double()
    assert torch.allclose(gradient, expected[:, None].expand(3, 2, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (output(), "the model has no head 'atention'; it has attention, similarity"),
        (Output(logits=torch.zeros(5, 4), embedding=torch.zeros(5, 4)), "no head 'atention'; it has none"),
        (torch.zeros(5, 4), "no head 'atention'; it has none"),
    ],
)
def test_a_head_that_is_not_there_is_told_with_those_that_are(given_, message):
    with pytest.raises(UserError, match=message):
        OnHead(objective=Margin(), head="atention")(given_, labels(0))


def test_no_objectives_are_refused():
    with pytest.raises(UserError, match="objectives must hold at least one objective"):
        Summed(objectives=[])


def test_an_attack_can_judge_by_another_head():
    """Two heads with opposite slopes: the attack on one goes the other way, and each is judged by its own."""

    def model(image):
        score = image.mean((1, 2, 3)) - 0.45
        logits = torch.stack([score, -score], 1)
        return Output(logits=logits, embedding=logits, heads={"other": torch.stack([0.1 - score, score - 0.1], 1)})

    clean, label = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    for objective, value in [(Margin(), 0.4), (OnHead(objective=Margin(), head="other"), 0.6)]:
        attack = GradientAttack(
            threat=Linf(epsilon=0.1), step=Steepest(size="eps"), steps=1, objective=objective, decision=objective
        )
        (attempt,) = attack.attempts(model, clean, label)
        assert torch.allclose(attempt.image, torch.full_like(clean, value), rtol=0, atol=1e-12)
        assert (attempt.margin < 0).all()


# --- Distances


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_the_nearest_wrong_centre_is_that_of_the_mixture_heads_distances(seed):
    torch.manual_seed(seed)
    head = GaussianMixture(channels=6, num_classes=4).double()
    head.means.data = torch.randn(4, 6, dtype=torch.float64)
    features = torch.randn(5, 6, 2, 2, dtype=torch.float64)
    label = labels(seed)
    value = NearestWrongCentre()(head(features), label)
    for sample in range(5):
        pooled = features[sample].mean((1, 2))
        nearest = min(((pooled - head.means[k]) ** 2).sum().item() for k in range(4) if k != label[sample])
        assert value[sample].item() == pytest.approx(-nearest, rel=1e-9)


def test_it_does_not_saturate_where_cross_entropy_does():
    logits = torch.tensor([[-1.0, -300.0, -500.0]], requires_grad=True)
    for objective, expected in [(CrossEntropy(), [0.0, 0.0, 0.0]), (NearestWrongCentre(), [0.0, 2.0, 0.0])]:
        (gradient,) = torch.autograd.grad(objective(logits, torch.tensor([0])).sum(), logits)
        assert gradient.tolist() == [expected]


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, prototypes=st.integers(1, 4))
def test_the_nearest_wrong_prototype_is_the_most_similar_one_of_another_class(seed, prototypes):
    given_, label = output(seed, prototypes=prototypes), labels(seed)
    value = NearestWrongPrototype(head="similarity", per_class=prototypes)(given_, label)
    for sample in range(5):
        row = given_.heads["similarity"][sample].tolist()
        others = [s for place, s in enumerate(row) if place // prototypes != label[sample]]
        assert value[sample].item() == max(others)


def test_prototypes_that_are_not_as_many_for_every_class_are_told():
    with pytest.raises(UserError, match=r"head 'similarity' holds 12 similarities, not 2 for each of 4 classes"):
        NearestWrongPrototype(head="similarity", per_class=2)(output(prototypes=3), labels(0))
    with pytest.raises(UserError, match="per_class must be >= 1, got 0"):
        NearestWrongPrototype(head="similarity", per_class=0)
