from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import INDEX, Linear, Net, images, margin

from robustfg.attacks import L0, CrossEntropy, GradientAttack, Steepest
from robustfg.core.errors import UserError

GEOMETRY = {
    "seed": st.integers(0, 2**32 - 1),
    "channels": st.sampled_from([1, 2, 3]),
    "shape": st.sampled_from([(1, 1), (1, 3), (2, 2), (2, 3)]),
    "spread": st.sampled_from([0.1, 1.0, 10.0]),
    "epsilon": st.integers(0, 7),
}


def points(seed, channels, shape, spread):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(3, channels, *shape, generator=generator, dtype=torch.float64)
    clean[torch.rand(clean.shape, generator=generator) < 0.3] = 1.0
    return clean, clean + spread * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def pgd(epsilon=3, size=2.0, steps=6, **options):
    return GradientAttack(threat=L0(epsilon=epsilon), step=Steepest(size=size), steps=steps, **options)


@settings(deadline=None, max_examples=80)
@given(**GEOMETRY)
def test_projection_is_the_nearest_of_all_images_with_so_few_changed_pixels(seed, channels, shape, spread, epsilon):
    clean, image = points(seed, channels, shape, spread)
    projected = L0(epsilon=epsilon).project(image, clean)
    places = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    for point, center, found in zip(image, clean, projected, strict=True):
        distances = []
        for chosen in combinations(places, min(epsilon, len(places))):
            allowed = center.clone()
            for row, column in chosen:
                allowed[:, row, column] = point[:, row, column].clamp(0, 1)
            distances.append((allowed - point).norm().item())
        assert (found - point).norm().item() == pytest.approx(min(distances), rel=1e-12)
        assert (found != center).any(0).sum() <= epsilon
        assert 0 <= found.min() <= found.max() <= 1


@settings(deadline=None, max_examples=40)
@given(**GEOMETRY)
def test_a_radius_per_sample_projects_each_sample_alone(seed, channels, shape, spread, epsilon):
    clean, image = points(seed, channels, shape, spread)
    radius = torch.tensor([0.0, epsilon, 2.0], dtype=torch.float64)
    together = L0(epsilon=1).within(image, clean, radius.view(-1, 1, 1, 1)).clamp(0, 1)
    for sample, count in enumerate(radius.tolist()):
        alone = L0(epsilon=count).project(image[sample : sample + 1], clean[sample : sample + 1])
        assert torch.equal(together[sample : sample + 1], alone)


def test_a_pixel_counts_once_however_many_channels_change():
    change = torch.zeros(3, 3, 2, 2)
    change[1, :, 0, 1] = 0.5
    change[2, 0, 0, 0] = change[2, 1, 1, 1] = -1e-9
    assert L0(epsilon=1).size(change).tolist() == [0, 1, 2]
    clean, image = images(1), images(1, seed=1)
    assert (L0(epsilon=5).project(image, clean) != clean).any(1).sum() == 5
    assert (L0(epsilon=5).project(image, clean) != clean).sum() == 15


def test_too_many_pixels_are_found_out():
    clean = images(1)
    moved = clean.clone()
    moved[0, 0, 0, :3] += 1e-6
    L0(epsilon=3).check(moved, clean)
    with pytest.raises(AssertionError, match="l0 size"):
        L0(epsilon=2).check(moved, clean)


@pytest.mark.parametrize("epsilon", [0, 1, 5, 16, 99])
def test_starts_change_epsilon_pixels_to_colours_of_the_box_and_are_keyed_by_sample(epsilon):
    clean = images()
    noise = L0(epsilon=epsilon).uniform(clean, INDEX, 0, "pgd")
    assert (noise != 0).any(1).flatten(1).sum(1).tolist() == [min(epsilon, 16)] * 6
    assert ((clean + noise >= 0) & (clean + noise <= 1)).all()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.equal(L0(epsilon=epsilon).uniform(clean[order], INDEX[order], 0, "pgd"), noise[order])


def test_every_pixel_is_as_likely_as_another():
    clean = torch.zeros(4000, 1, 2, 3)
    share = (L0(epsilon=2).uniform(clean, torch.arange(4000), 0) != 0).double().mean((0, 1))
    assert torch.allclose(share, torch.full_like(share, 1 / 3), atol=0.04)


def test_steps_have_l1_norm_one_in_the_direction_of_the_gradient():
    gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 1e-20
    gradient[3] = 0
    step = L0(epsilon=1).steepest(gradient)
    assert torch.allclose(step.abs().sum((1, 2, 3)), torch.tensor([1.0, 1, 1, 0]))
    assert torch.allclose(step[:3] * gradient[:3].abs().sum((1, 2, 3), keepdim=True), gradient[:3], rtol=1e-5, atol=0)


@pytest.mark.parametrize("epsilon", [2.5, "1/2", 0.1])
def test_parts_of_pixels_are_refused(epsilon):
    with pytest.raises(UserError, match="l0 epsilon is a number of pixels, got"):
        L0(epsilon=epsilon)


def test_pgd0_equals_a_naive_loop():
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = pgd(objective=CrossEntropy(), last_iterate=True)
    found = attack(model, clean, label, INDEX)
    for sample in range(6):
        start, image = clean[sample], clean[sample]
        for _ in range(6):
            leaf = image[None].clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(leaf), label[sample : sample + 1])
            (gradient,) = torch.autograd.grad(loss, leaf)
            moved = image + 2.0 * gradient[0] / gradient.abs().sum()
            gain = {
                (row, column): ((moved - start) ** 2 - (moved - moved.clamp(0, 1)) ** 2)[:, row, column].sum().item()
                for row in range(4)
                for column in range(4)
            }
            image = start.clone()
            for row, column in sorted(gain, key=gain.get)[-3:]:
                image[:, row, column] = moved[:, row, column].clamp(0, 1)
        assert torch.allclose(found[sample], image, rtol=0, atol=1e-12)


def fewest(model, clean):
    """On a linear model pixels do not interact: those that can lower the score the most are changed first."""
    weight = model.weight.detach()
    gain = torch.maximum(weight * clean, weight * (clean - 1)).sum(1).flatten(1)
    score = model.score(clean).detach()
    return [
        int((row.sort(descending=True).values.cumsum(0) <= value).sum()) + 1
        for row, value in zip(gain, score, strict=True)
    ]


def test_pgd0_fools_a_linear_model_with_the_fewest_pixels_and_not_with_fewer():
    model, clean = Linear(bias=6), images()
    label = torch.zeros(6, dtype=torch.int64)
    for sample, count in enumerate(fewest(model, clean)):
        one = clean[sample : sample + 1], label[:1], INDEX[sample : sample + 1]
        assert count > 1
        assert margin(model, pgd(count, size=400, steps=10)(model, *one), 0) < 0
        assert margin(model, pgd(count - 1, size=400, steps=10)(model, *one), 0) > 0


@pytest.mark.parametrize("options", [{"random_start": True}, {"restarts": 2, "random_start": True}])
def test_results_of_pgd0_do_not_depend_on_batch_size_or_order(options):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = pgd(epsilon=2, **options)
    together = attack(model, clean, label, INDEX)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.allclose(attack(model, clean[order], label[order], INDEX[order]), together[order], rtol=0, atol=1e-10)
    alone = [attack(model, *part) for part in zip(*(x.split(1) for x in (clean, label, INDEX)), strict=True)]
    assert torch.allclose(torch.cat(alone), together, rtol=0, atol=1e-10)


def test_no_pixels_and_no_samples_work():
    clean, label = images(), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(pgd(0, random_start=True)(Net(), clean, label, INDEX), clean)
    assert pgd(random_start=True)(Net(), clean[:0], label[:0], INDEX[:0]).shape == (0, 3, 4, 4)
