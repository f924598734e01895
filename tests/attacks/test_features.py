import json

import pytest
import torch
from torch import nn

from robustfg.attacks import L2, FeatureAttack, FeatureBank, Linf, Patch, Steepest
from robustfg.core.errors import UserError
from robustfg.core.types import Output

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])


class Centres(nn.Module):
    """The feature is a linear map of the image; the class is the nearest of four centres."""

    def __init__(self, dim=5, lead=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, dim, generator=generator, dtype=torch.float64) / 7)
        self.means = nn.Parameter(torch.randn(4, dim, generator=generator, dtype=torch.float64))
        self.lead = lead

    def forward(self, image):
        feature = (image - 0.5).flatten(1) @ self.weight
        logits = -(feature[:, None] - self.means).square().sum(2) / 2
        return Output(logits=logits + self.lead * torch.eye(4)[0].double(), embedding=feature)


def images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)


def bank_of(model):
    return FeatureBank(model.means.detach(), torch.arange(4))


def attack(model, **options):
    settings = {"threat": Linf(epsilon=0.1), "bank": bank_of(model), "steps": 8, "random_start": False}
    return FeatureAttack(**(settings | options))


def naive(model, clean, label, bank, steps, length, epsilon, *, moving, rank=0):
    """Iterates of one sample; distances and gradient of the linear map by hand."""
    weight, iterates, target = model.weight.detach(), [clean], None
    for _ in range(steps):
        feature = (iterates[-1] - 0.5).flatten() @ weight
        if moving or target is None:
            distances = sorted(
                ((feature - f).square().sum().item(), place)
                for place, f in enumerate(bank.embedding)
                if bank.label[place] != label
            )
            target = distances[min(rank, len(distances) - 1)][1]
        gradient = (weight @ (2 * (feature - bank.embedding[target]))).view_as(clean)
        change = (iterates[-1] - length * gradient.sign() - clean).clamp(-epsilon, epsilon)
        iterates.append((clean + change).clamp(0, 1))
    return iterates


def margin(model, image, label):
    logits = model(image[None]).logits[0].tolist()
    return logits[label] - max(value for k, value in enumerate(logits) if k != label)


# --- Against a naive loop and closed forms


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("size", [1, 40])
def test_the_iterates_are_those_of_a_naive_loop_whatever_the_bank(moving, size):
    """Every sample is attacked by itself; the worst iterate is kept. No sample is fooled, so all stay."""
    model = Centres(lead=100.0)
    generator = torch.Generator().manual_seed(3)
    entries = torch.randn(4 * size, 5, generator=generator, dtype=torch.float64)
    bank = FeatureBank(entries, torch.arange(4).repeat(size))
    clean, label = images(), torch.zeros(6, dtype=torch.int64)
    by_feature = attack(model, bank=bank, moving=moving, threat=Linf(epsilon=0.5), step=Steepest(size=0.2))
    (attempt,) = by_feature.attempts(model, clean, label, INDEX)
    differ = 0
    for sample in range(6):
        iterates = naive(model, clean[sample], 0, bank, 8, 0.2, 0.5, moving=moving)
        others = naive(model, clean[sample], 0, bank, 8, 0.2, 0.5, moving=not moving)
        differ += not torch.equal(iterates[-1], others[-1])
        worst = min(iterates, key=lambda image: margin(model, image, 0))
        assert torch.allclose(attempt.image[sample], worst, rtol=0, atol=1e-9)
        assert attempt.margin[sample].item() == pytest.approx(margin(model, worst, 0), abs=1e-6)
    assert size == 1 or differ > 0  # in the larger bank it matters whether the target moves
    assert attempt.forwards.tolist() == [9] * 6
    assert attempt.backwards.tolist() == [8] * 6


def test_a_target_within_reach_is_reached():
    """In l2 without a border in the way: the feature of an image that lies inside the ball."""
    model = Centres(lead=100.0)
    clean = images() * 0.4 + 0.3
    other = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sample in range(6):
        with torch.no_grad():
            aim = model(other[[sample]]).embedding
        bank = FeatureBank(torch.cat([aim, aim + 50]), torch.tensor([1, 0]))
        found = FeatureAttack(
            threat=L2(epsilon=1.0), bank=bank, step=Steepest(size=0.001), steps=400, random_start=False,
            decision=Closeness(aim),
        )(model, clean[[sample]], torch.zeros(1).long())  # fmt: skip
        with torch.no_grad():
            assert (model(found).embedding - aim).norm() < 0.02 * (model(clean[[sample]]).embedding - aim).norm()


class Closeness:
    """Never won; the nearest image is kept."""

    name = "closeness"

    def __init__(self, aim):
        self.aim = aim

    def __call__(self, output, label):
        return -(output.embedding - self.aim).norm(dim=1)


def test_samples_that_leave_take_their_targets_with_them():
    """Alone and together, in any order, when others are fooled at different steps: the same image."""
    model, clean = Centres(), images(40)
    label, index = model(clean).logits.argmax(1), torch.arange(40) * 3
    for moving in (True, False):
        by_feature = attack(model, moving=moving, steps=40, random_start=True, step=Steepest(size=0.01))
        (attempt,) = by_feature.attempts(model, clean, label, index)
        assert len(set(attempt.forwards.tolist())) > 3
        assert (attempt.margin < 0).double().mean() > 0.3
        for sample in range(0, 40, 3):
            alone = by_feature(model, clean[[sample]], label[[sample]], index[[sample]])
            assert torch.allclose(alone[0], attempt.image[sample], rtol=0, atol=1e-9)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        shuffled = by_feature(model, clean[order], label[order], index[order])
        assert torch.allclose(shuffled, attempt.image[order], rtol=0, atol=1e-9)


def test_restarts_with_a_kept_target_try_the_next_nearest_ones():
    model = Centres(lead=100.0)
    clean, label = images(), torch.zeros(6, dtype=torch.int64)
    by_feature = attack(model, moving=False, restarts=4, decision=Far())
    for restart, attempt in enumerate(by_feature.attempts(model, clean, label, INDEX)):
        for sample in range(6):
            iterates = naive(
                model, clean[sample], 0, bank_of(model), 8, 0.025, 0.1, moving=False, rank=restart
            )  # three wrong centres: the fourth restart repeats the third
            far = max(iterates, key=lambda image: (image - clean[sample]).abs().sum())
            assert any(torch.allclose(attempt.image[sample], image, atol=1e-9) for image in (far, *iterates))


class Far:
    """Never won."""

    name = "far"

    def __call__(self, output, label):
        return -output.logits[:, 0].abs() - 1


def test_it_works_within_a_patch_at_a_drawn_place():
    model = Centres(lead=100.0)
    clean, label = images(), torch.zeros(6, dtype=torch.int64)
    by_feature = attack(model, threat=Patch(epsilon="4/16"), random_start=True, steps=5)
    found = by_feature(model, clean, label, INDEX)
    changed = (found != clean).any(1).flatten(1).sum(1)
    assert (changed <= 4).all()
    assert (changed > 0).all()


def test_the_patch_stays_with_its_sample_when_others_leave():
    model, clean = Centres(), images(30)
    label, index = model(clean).logits.argmax(1), torch.arange(30) * 3
    by_feature = attack(model, threat=Patch(epsilon="9/16"), step=Steepest(size=0.05), steps=20)
    (attempt,) = by_feature.attempts(model, clean, label, index)
    assert len(set(attempt.forwards.tolist())) > 3
    for sample in range(0, 30, 2):
        alone = by_feature(model, clean[[sample]], label[[sample]], index[[sample]])
        assert torch.allclose(alone[0], attempt.image[sample], rtol=0, atol=1e-9)


# --- The bank


def test_a_bank_of_images_holds_the_models_features():
    model, clean, label = Centres().train(), images(), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.inference_mode():
        bank = FeatureBank.of(model, clean + 0, label + 0)
    assert torch.allclose(bank.embedding, (clean - 0.5).flatten(1) @ model.weight, rtol=0, atol=1e-12)
    assert bank.label.tolist() == label.tolist()
    assert model.training
    assert not bank.embedding.requires_grad
    assert not bank.embedding.is_inference()


def test_the_nearest_wrong_entries_are_those_of_a_naive_search():
    generator = torch.Generator().manual_seed(0)
    bank = FeatureBank(torch.randn(30, 3, generator=generator), torch.randint(3, (30,), generator=generator))
    feature, label = torch.randn(8, 3, generator=generator), torch.arange(8) % 3
    for rank in (0, 1, 4, 99):
        found = bank.nearest_wrong(feature, label, rank)
        for sample in range(8):
            wrong = [place for place in range(30) if bank.label[place] != label[sample]]
            wrong.sort(key=lambda place: (feature[sample] - bank.embedding[place]).norm().item())
            assert found[sample] == wrong[min(rank, len(wrong) - 1)]


def test_a_bank_is_written_and_read(tmp_path):
    bank, path = bank_of(Centres()), str(tmp_path / "bank.pt")
    bank.write(path)
    read = FeatureBank.read(path)
    assert torch.equal(read.embedding, bank.embedding)
    assert torch.equal(read.label, bank.label)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no feature bank at"), (b"x", "is no feature bank"), ({"label": 1}, "is no feature bank")],
)
def test_missing_and_damaged_banks_are_told(tmp_path, content, message):
    path = tmp_path / "bank.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        FeatureBank.read(str(path))


@pytest.mark.parametrize(
    ("embedding", "label", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"need features \(N, D\) and labels \(N,\), got \(3,\) and \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(4), r"got \(3, 2\) and \(4,\)"),
        (torch.zeros(3, 2), torch.ones(3), "need features of two classes at least"),
        (torch.zeros(0, 2), torch.ones(0), "need features of two classes at least"),
    ],
)
def test_banks_that_give_nothing_to_aim_at_are_refused(embedding, label, message):
    with pytest.raises(UserError, match=message):
        FeatureBank(embedding, label.long())


# --- Settings


def test_a_model_without_embeddings_is_told():
    with pytest.raises(UserError, match="a feature attack needs a model that returns an Output"):
        attack(Centres())(lambda image: image.flatten(1)[:, :4], images(), torch.zeros(6).long())


def test_an_empty_batch_and_a_description():
    model, none = Centres(), torch.zeros(0, dtype=torch.int64)
    assert attack(model)(model, images()[:0], none, none).shape == (0, 3, 4, 4)
    described = json.loads(json.dumps(attack(model).describe()))
    assert (described["norm"], described["epsilon"], described["steps"], described["bank"]) == ("linf", "0.1", 8, 4)
    assert attack(model, moving=False).describe()["objective"] != described["objective"]
    with pytest.raises(UserError, match="steps must be >= 1, got 0"):
        attack(model, steps=0)
