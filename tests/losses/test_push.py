import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.losses import MaximalSeparation, ProtoPNet
from robustfg.losses.push import Push

pytestmark = pytest.mark.numeric

CLASSES, PER_CLASS, HEIGHT, WIDTH = 3, 2, 2, 4


def loss(by_evidence):
    torch.manual_seed(0)
    options = {"channels": 5, "num_classes": CLASSES, "prototypes_per_class": PER_CLASS, "prototype_depth": 4}
    module = MaximalSeparation(**options, push_by_evidence=True) if by_evidence else ProtoPNet(**options)
    for weight in module.parameters():
        weight.data = coarse(weight.data)
    return module.eval()


def coarse(values):
    """So few bits that sums of products are exact in any order: equal patches tie in batches of any size."""
    return (values * 64).round() / 64


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = coarse(torch.randn(count, 5, HEIGHT, WIDTH, generator=generator))
    if count > 3:
        maps[count - 1] = maps[0]  # the same image twice: the smaller id must win
    return maps, torch.randint(CLASSES, (count,), generator=generator), torch.randperm(100, generator=generator)[:count]


def brute_force(module, maps, label, index, by_evidence):
    """For every prototype the best (value, image, position) among all own-class patches, or None."""
    best = []
    attention = module(maps).maps["attention"] if by_evidence else None
    for vector, own in zip(module.prototype.prototypes.vectors, module.prototype.prototypes.classes, strict=True):
        patches = []
        for sample in range(len(maps)):
            if label[sample] != own:
                continue
            latent = module.prototype.add_on(maps[sample : sample + 1])[0].double()
            for place in range(HEIGHT * WIDTH):
                distance = (latent[:, place // WIDTH, place % WIDTH] - vector).square().sum().item()
                value = distance
                if by_evidence:
                    weight = attention[sample, 0, place // WIDTH, place % WIDTH].double().item()
                    value = -weight * torch.log(torch.tensor((distance + 1) / (distance + 1e-4))).item()
                patches.append((round(value, 6), int(index[sample]), place, latent[:, place // WIDTH, place % WIDTH]))
        best.append(min(patches, key=lambda patch: patch[:3]) if patches else None)
    return best


def pushed(module, maps, label, index, processes, order):
    """What surveys of some processes, each with its share in some order and batch size, conclude."""
    surveys = [module.survey("push") for _ in range(processes)]
    for rank, survey in enumerate(surveys):
        share = order[rank::processes]
        for start in range(0, len(share), 3):
            rows = share[start : start + 3]
            survey.see(maps[rows], label[rows], index[rows])
    return module.survey("push").conclude([survey.findings() for survey in surveys])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(0, 99), st.integers(1, 3), st.booleans(), st.randoms())
def test_push_equals_brute_force_for_any_number_and_order_of_processes(count, seed, processes, by_evidence, shuffler):
    module = loss(by_evidence)
    before = module.prototype.prototypes.vectors.detach().clone()
    maps, label, index = samples(count, seed)
    expected = brute_force(module, maps, label, index, by_evidence)
    order = list(range(count))
    shuffler.shuffle(order)
    pushed(module, maps, label, index, processes, order)
    prototypes = module.prototype.prototypes
    for number, patch in enumerate(expected):
        if patch is None:
            assert torch.equal(prototypes.vectors[number], before[number])
            assert prototypes.image[number] == -1
            assert prototypes.box[number].isnan().all()
            continue
        _, image, place, vector = patch
        assert prototypes.image[number] == image
        assert torch.allclose(prototypes.vectors[number].double(), vector, atol=1e-6)
        box = [place % WIDTH / WIDTH, place // WIDTH / HEIGHT, 1 / WIDTH, 1 / HEIGHT]
        assert prototypes.box[number].tolist() == pytest.approx(box)


def test_prototypes_end_bit_for_bit_the_same_on_one_process_and_on_three():
    ends = []
    maps, label, index = samples(9, 4)
    for processes in (1, 3):
        module, order = loss(True), list(range(9))
        random.Random(processes).shuffle(order)
        pushed(module, maps, label, index, processes, order)
        ends.append(module.state_dict())
    assert all(torch.equal(value.nan_to_num(7), ends[1][key].nan_to_num(7)) for key, value in ends[0].items())


def test_a_pushed_prototype_is_at_no_distance_from_its_patch():
    module = loss(False)
    maps, label, index = samples(9, 4)
    told = pushed(module, maps, label, index, 1, list(range(9)))
    distance = module(maps).maps["class_distance"]
    for k in label.unique():
        assert distance[label == k, k].min().item() < 1e-5
    assert told["distance"] > 0
    again = pushed(module, maps, label, index, 1, list(range(9)))
    assert again["distance"] == pytest.approx(0, abs=1e-12)
    places = {tuple(row.tolist()) for row in torch.cat([module.prototype.prototypes.box.nan_to_num(9),
              module.prototype.prototypes.image[:, None]], 1)}  # fmt: skip
    assert again["distinct"] == pytest.approx(len(places) / 6)


@pytest.mark.parametrize("by_evidence", [False, True])
def test_of_equal_patches_in_several_batches_that_of_the_smallest_id_wins(by_evidence):
    module = loss(by_evidence)
    image = samples(1, 0)[0]
    survey, label = module.survey("push"), torch.tensor([1])
    for index in (9, 3, 5):
        survey.see(image, label, torch.tensor([index]))
    survey.conclude([survey.findings()])
    assert module.prototype.prototypes.image.tolist() == [-1, -1, 3, 3, -1, -1]


def test_an_image_with_a_dead_map_is_taken_only_where_there_is_no_other():
    module = loss(True)
    module.attention_epsilon = 0.0
    module.attention.agnostic.weight.data.fill_(1.0)
    module.attention.agnostic.bias.data.zero_()
    maps, label = samples(2, 0)[0], torch.tensor([0, 0])
    maps[0] = -1.0  # rectified to nothing
    assert module(maps).maps["attention"].isnan().flatten(1).all(1).tolist() == [True, False]
    for chosen, expected in (([0, 1], 8), ([0], 2)):
        pushed(module, maps[chosen], label[chosen], torch.tensor([2, 8])[chosen], 1, range(len(chosen)))
        assert module.prototype.prototypes.image[:PER_CLASS].tolist() == [expected] * PER_CLASS


def test_no_process_found_anything():
    module = loss(False)
    assert Push(module.prototype).conclude([{}, {}]) == {"distance": 0.0, "distinct": 0.0}
