import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustfg.losses import ProtoPNet

CLASSES, PER_CLASS = 3, 4


def loss(per_class=PER_CLASS):
    torch.manual_seed(0)
    return ProtoPNet(channels=5, num_classes=CLASSES, prototypes_per_class=per_class, prototype_depth=4).eval()


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (count,), generator=generator)
    maps = torch.randn(count, 5, 2, 2, generator=generator) + 2 * label.view(-1, 1, 1, 1)
    return maps, label, torch.randperm(100, generator=generator)[:count]


def pruned(module, maps, label, index, processes=1):
    surveys = [module.survey("prune") for _ in range(processes)]
    for rank, survey in enumerate(surveys):
        for row in range(rank, len(maps), processes):
            survey.see(maps[row : row + 1], label[row : row + 1], index[row : row + 1])
    return module.survey("prune").conclude([survey.findings() for survey in surveys])


def kept_by_brute_force(module, maps, label, index):
    own = []
    for vector, k in zip(module.prototype.prototypes.vectors, module.prototype.prototypes.classes, strict=True):
        latent = module.prototype.add_on(maps).double()
        nearest = (latent - vector.double()[None, :, None, None]).square().sum(1).amin((1, 2)).float()
        order = sorted(zip(nearest.tolist(), index.tolist(), label.tolist(), strict=True))[:6]
        own.append((sum(place[2] == k for place in order), -order[0][0]))
    kept = [votes >= 3 for votes, _ in own]
    spared = 0
    for first in range(0, len(own), PER_CLASS):
        if not any(kept[first : first + PER_CLASS]):
            best = max(range(first, first + PER_CLASS), key=lambda number: own[number])
            kept[best] = True
            spared += 1
    return torch.tensor(kept), spared


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(0, 99), st.integers(1, 3))
def test_prune_equals_brute_force_for_any_number_of_processes(count, seed, processes):
    module = loss()
    maps, label, index = samples(count, seed)
    kept, spared = kept_by_brute_force(module, maps, label, index)
    vectors = module.prototype.prototypes.vectors.detach()[kept]
    weight = module.prototype.last_layer.weight.detach()[:, kept]
    told = pruned(module, maps, label, index, processes)
    assert told == {"prototypes": int(kept.sum()), "spared": spared}
    assert torch.equal(module.prototype.prototypes.vectors, vectors)
    assert torch.equal(module.prototype.last_layer.weight, weight)


def test_pruning_forgets_some_and_spares_others():
    """So that the comparison above is of something."""
    told = [pruned(loss(), *samples(12, seed)) for seed in range(5)]
    assert any(0 < found["prototypes"] < CLASSES * PER_CLASS for found in told)
    assert any(found["spared"] for found in told)


@pytest.mark.parametrize("own", [2, 3])
def test_three_of_the_six_nearest_patches_must_be_own(own):
    module = loss(per_class=2)
    module.prototype.add_on = nn.Identity()
    label = torch.tensor([0] * own + [1] * (6 - own) + [0] * 10)
    maps = torch.tensor([0.0] * 6 + [1.0] * 10).view(16, 1, 1, 1).expand(-1, 4, 1, 1)
    prototypes = module.prototype.prototypes
    prototypes.vectors.data[0], prototypes.vectors.data[1] = 0.0, 1.0  # the second one is among its own
    pruned(module, maps, label, torch.arange(16))
    left = prototypes.vectors[prototypes.classes == 0, 0].tolist()
    assert left == ([0.0, 1.0] if own == 3 else [1.0])


@pytest.mark.parametrize("own_first", [False, True])
def test_of_two_patches_at_the_same_distance_the_smaller_id_counts(own_first):
    module = loss(per_class=2)
    module.prototype.add_on = nn.Identity()
    label = torch.tensor([0, 0, 1, 1, 1] + [0, 1] + [0] * 6)  # the two in the middle want the sixth place
    maps = torch.tensor([0.0] * 5 + [1.0] * 2 + [9.0] * 6).view(13, 1, 1, 1).expand(-1, 4, 1, 1)
    index = torch.tensor([0, 1, 2, 3, 4] + ([5, 6] if own_first else [6, 5]) + list(range(7, 13)))
    prototypes = module.prototype.prototypes
    prototypes.vectors.data[0], prototypes.vectors.data[1] = 0.0, 9.0
    pruned(module, maps, label, index)
    assert (prototypes.vectors[prototypes.classes == 0, 0] == 0).any().item() is own_first


def test_training_goes_on_with_what_is_left():
    module = loss()
    maps, label, index = samples(12, 0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.loss(module(maps), label)["loss"].backward()
    pruned(module, maps, label, index)
    optimizer.step()  # gradients of the old size are gone
    module.loss(module(maps), label)["loss"].backward()
    before = module.prototype.last_layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, module.prototype.last_layer.weight)
