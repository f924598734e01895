import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from robustfg.attacks import Frame, GradientAttack, Momentum, Patch, Steepest
from robustfg.core.errors import UserError

SIDES = st.integers(1, 9)
INDEX = torch.tensor([7, 3, 12, 0, 99, 41])
LABEL = torch.tensor([0, 1, 0, 1, 1, 0])


class Linear(nn.Module):
    """Two logits, +s/2 and -s/2 of a linear score s, shifted so that the true class leads by ``lead`` on any image."""

    def __init__(self, lead=0.0, channels=3, size=6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(channels, size, size, generator=generator, dtype=torch.float64))
        self.lead = lead

    def forward(self, image):
        score = (image * self.weight).flatten(1).sum(1) + self.lead
        return torch.stack([score, -score], 1) / 2


def images(count=6, channels=3, height=6, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)


def attack(threat, size="eps", steps=1, **options):
    return GradientAttack(threat=threat, step=Steepest(size=size), steps=steps, **options)


def squares(height, width, side):
    """Every square of that side, as sets of pixels, by its upper left pixel."""
    return {
        (top, left): {(i, j) for i in range(top, top + side) for j in range(left, left + side)}
        for top in range(height - side + 1)
        for left in range(width - side + 1)
    }


def pixels(mask):
    """Pixels ``(H, W)`` where a mask is true."""
    return {tuple(place) for place in mask.nonzero().tolist()}


def corner_of(change):
    """Upper left changed pixel of ``(C, H, W)``, and the sides of the box around all changed ones."""
    rows, columns = (change != 0).any(0).nonzero().unbind(1)
    return (int(rows.min()), int(columns.min())), (
        int(rows.max() - rows.min()) + 1,
        int(columns.max() - columns.min()) + 1,
    )


# --- Geometry


@settings(deadline=None, max_examples=80)
@given(height=SIDES, width=SIDES, share=st.floats(0.02, 1), down=st.floats(0, 1), right=st.floats(0, 1))
def test_a_fixed_patch_is_the_largest_square_of_its_share_at_its_place(height, width, share, down, right):
    fitting = [s for s in range(1, 10) if s * s <= share * height * width + 1e-6 and s <= min(height, width)]
    patch, clean = Patch(epsilon=share, place=[down, right]), images(1, 1, height, width)
    if not fitting:
        with pytest.raises(UserError, match="is less than one pixel"):
            patch.region(clean)
        return
    side = fitting[-1]
    corner = round(down * (height - side)), round(right * (width - side))
    assert pixels(patch.region(clean)[0, 0]) == squares(height, width, side)[corner]


@pytest.mark.parametrize(
    ("place", "corner"), [((0, 0), (0, 0)), ((1, 1), (5, 5)), ((0, 1), (0, 5)), ((1, 0), (5, 0)), ((0.5, 0.5), (2, 2))]
)
def test_corners_and_centre(place, corner):
    region = Patch(epsilon="9/64", place=place).region(images(1, 1, 8, 8))[0, 0]
    assert pixels(region) == squares(8, 8, 3)[corner]


@pytest.mark.parametrize("side", range(1, 33))
def test_a_fraction_of_whole_squares_gives_exactly_that_side(side):
    assert Patch(epsilon=f"{side * side}/1024").side(torch.zeros(1, 3, 32, 32)) == side


@settings(deadline=None, max_examples=80)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 10**6), dense=st.sampled_from([0.02, 0.1, 0.5]))
def test_the_size_of_a_patch_is_that_of_the_smallest_square_around_the_change(height, width, seed, dense):
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(3, 2, height, width, generator=generator)
    change *= torch.rand(3, 1, height, width, generator=generator) < dense
    change[:, 0] = 0  # one changed channel is enough
    size = Patch(epsilon=0.1).size(change)
    for sample, found in zip(change, size.tolist(), strict=True):
        changed = pixels((sample != 0).any(0))
        large = max(height, width)  # a square may stick out of an image that is not one
        side = min(
            s for s in range(large + 1) if not changed or any(changed <= q for q in squares(large, large, s).values())
        )
        assert found == pytest.approx(side**2 / (height * width), abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 10**6), dense=st.sampled_from([0.02, 0.1, 0.5]))
def test_the_size_of_a_frame_is_the_smallest_width_that_covers_the_change(height, width, seed, dense):
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(3, 2, height, width, generator=generator)
    change *= torch.rand(3, 1, height, width, generator=generator) < dense

    def frame(border):
        return {
            (i, j)
            for i in range(height)
            for j in range(width)
            if i < border or j < border or i >= height - border or j >= width - border
        }

    expected = [min(w for w in range(10) if pixels((sample != 0).any(0)) <= frame(w)) for sample in change]
    assert Frame(epsilon=1).size(change).tolist() == expected
    for border in range(4):
        assert pixels(Frame(epsilon=border).region(change).expand(1, 1, height, width)[0, 0]) == frame(border)


THREATS = [Patch(epsilon=0.3, place=(0.3, 1)), Patch(epsilon=1, place=(0, 0)), Frame(epsilon=2), Frame(epsilon=0)]


@pytest.mark.parametrize("threat", THREATS)
def test_the_projection_keeps_the_inside_and_gives_back_the_outside(threat):
    clean = images()
    moved = clean + 3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    projected, inside = threat.project(moved, clean), threat.region(clean).expand_as(clean)
    assert torch.equal(projected[inside], moved.clamp(0, 1)[inside])
    assert torch.equal(projected[~inside], clean[~inside])
    threat.check(projected, clean)
    assert torch.equal(threat.project(projected, clean), projected)


@pytest.mark.parametrize("threat", THREATS[:3])
def test_starts_are_uniform_pixel_values_inside_and_nothing_outside(threat):
    clean = images(400)
    index = torch.arange(400)
    started = clean + threat.uniform(clean, index, 0, "a")
    inside = threat.region(clean).expand_as(clean)
    assert stats.kstest(started[inside].numpy()[::7], "uniform").pvalue > 1e-3
    assert torch.equal(started[~inside], clean[~inside])
    assert not torch.equal(threat.uniform(clean, index, 0, "b"), threat.uniform(clean, index, 0, "a"))


# --- Attacks


@pytest.mark.parametrize("threat", THREATS)
def test_on_a_linear_model_one_full_step_paints_the_region_black_and_white_as_the_weights_say(threat):
    model, clean = Linear(lead=1000), images()
    label = torch.zeros(6, dtype=torch.int64)
    worst = torch.where(threat.region(clean), (model.weight < 0).double(), clean)
    assert torch.equal(attack(threat)(model, clean, label, INDEX), worst)


@pytest.mark.parametrize("rule", [Steepest(size="eps/4"), Steepest(size=0.25), Momentum(size="eps/4")])
def test_a_share_of_epsilon_is_a_share_of_the_pixel_range(rule):
    """After one step from grey every pixel inside has moved by a quarter, whatever the area's share."""
    model, clean = Linear(lead=1000), torch.full((6, 3, 6, 6), 0.5, dtype=torch.float64)
    threat = Frame(epsilon=1)
    found = GradientAttack(threat=threat, step=rule, steps=1)(model, clean, torch.zeros(6).long(), INDEX)
    moved = (found - clean).abs()
    assert moved[threat.region(clean).expand_as(clean)].unique().tolist() == [0.25]


def test_the_worst_of_several_places_is_the_best_that_a_patch_can_do_at_the_places_drawn():
    """On a linear model the optimum at every place is known."""
    model, clean, label = Linear(lead=1000), images(), torch.zeros(6, dtype=torch.int64)
    threat, restarts = Patch(epsilon="4/36"), 5
    weight = model.weight.detach()
    gain = torch.maximum(weight.clamp_min(0) * clean, -weight.clamp_max(0) * (1 - clean)).sum(1)
    leads = (2 * model(clean)[:, 0]).tolist()
    places = [[set() for _ in clean] for _ in range(restarts)]
    attempts = list(attack(threat, restarts=restarts).attempts(model, clean, label, INDEX))
    for restart, attempt in enumerate(attempts):
        for sample in range(6):
            corner, box = corner_of(attempt.image[sample] - clean[sample])
            assert box == (2, 2)
            places[restart][sample] = corner
            patch = gain[sample, corner[0] : corner[0] + 2, corner[1] : corner[1] + 2].sum()
            expected = leads[sample] - float(patch)
            assert float(attempt.margin[sample]) == pytest.approx(expected, abs=1e-9)
    assert all(len({places[r][s] for r in range(restarts)}) > 1 for s in range(6))
    found = attack(threat, restarts=restarts)(model, clean, label, INDEX)
    best = torch.stack([attempt.margin for attempt in attempts]).amin(0)
    logits = model(found).detach()
    assert torch.allclose(logits[:, 0] - logits[:, 1], best, rtol=0, atol=1e-9)


def test_every_place_is_drawn_alike():
    clean, index = images(2000, 1, 5, 4), torch.arange(2000)
    regions = Patch(epsilon="4/20").placed(clean, index, 0, "a", 0, 0).region(clean)
    counts = {}
    for region in regions[:, 0]:
        corner, box = corner_of(region[None].float())
        assert box == (2, 2)
        counts[corner] = counts.get(corner, 0) + 1
    assert set(counts) == {(i, j) for i in range(4) for j in range(3)}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_the_place_belongs_to_the_sample_also_when_others_leave():
    """Alone, in another order, and among samples that are fooled step by step: the same image."""
    model = Linear(lead=1.0)
    clean = images()
    label = model(clean).argmax(1)
    patch = attack(Patch(epsilon="9/36"), size=0.02, steps=30, random_start=True)
    together = next(patch.attempts(model, clean, label, INDEX))
    assert len(set(together.forwards.tolist())) > 2  # samples left at different steps
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    shuffled = patch(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together.image[order], rtol=0, atol=1e-12)
    for sample in range(6):
        alone = patch(model, clean[[sample]], label[[sample]], INDEX[[sample]])
        assert torch.allclose(alone[0], together.image[sample], rtol=0, atol=1e-12)
        assert max(corner_of(alone[0] - clean[sample])[1]) <= 3


@pytest.mark.parametrize("threat", [Patch(epsilon=0), Patch(epsilon=0, place=(0, 0)), Frame(epsilon=0)])
def test_a_region_of_no_pixels_leaves_the_image(threat):
    clean = images()
    found = attack(threat, steps=3, random_start=True, restarts=2)(Linear(lead=1000), clean, LABEL * 0, INDEX)
    assert torch.equal(found, clean)


@pytest.mark.parametrize("threat", [Patch(epsilon=0.3), Patch(epsilon=0.3, place=(1, 0)), Frame(epsilon=1)])
def test_empty_batches_and_one_channel_work(threat):
    model = Linear(channels=1, lead=1000)
    clean = images(6, 1)
    assert attack(threat)(model, clean[:0], LABEL[:0], INDEX[:0]).shape == (0, 1, 6, 6)
    assert threat.size(clean[:0]).shape == (0,)
    found = attack(threat)(model, clean, LABEL * 0, INDEX)
    assert (model(found)[:, 0] < model(clean)[:, 0]).all()


# --- The budget


def test_changes_outside_are_found_by_the_check():
    clean = images(1, 1, 10, 10).clamp(0.1, 0.9)
    for threat, allowed, refused in [
        (Frame(epsilon=2), (1, 5), (2, 5)),
        (Patch(epsilon=0.09, place=(0, 0)), (2, 2), (3, 0)),
    ]:
        for place, accepted in ((allowed, True), (refused, False)):
            image = clean.clone()
            image[0, 0, place[0], place[1]] += 0.01
            if accepted:
                threat.check(image, clean)
            else:
                with pytest.raises(AssertionError):
                    threat.check(image, clean)
    image = clean.clone()
    image[0, 0, 4, 4] += 0.01
    image[0, 0, 6, 6] += 0.01
    Patch(epsilon=0.09).check(image, clean)  # within 3 x 3 of 100 pixels
    with pytest.raises(AssertionError, match="patch size"):
        Patch(epsilon=0.08).check(image, clean)
    image[0, 0, 4, 4] = 1.1
    with pytest.raises(AssertionError, match="outside"):
        Patch(epsilon=0.09).check(image, clean)


@settings(deadline=None, max_examples=60)
@given(
    height=SIDES, width=SIDES, share=st.floats(0.05, 1), seed=st.integers(0, 1000), fixed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_starts_and_projections_are_within_the_measured_budget(height, width, share, seed, fixed, dtype):
    threat = Patch(epsilon=max(share, 1 / (height * width)), place=(0.4, 0.7) if fixed else None)
    clean, index = images(3, 2, height, width, seed).to(dtype), torch.arange(3)
    placed = threat.placed(clean, index, seed)
    start = placed.project(clean + placed.uniform(clean, index, seed), clean)
    moved = placed.project(start + placed.steepest(clean - 0.5), clean)
    for image in (start, moved):
        threat.check(image, clean)
        assert (threat.size(image.double() - clean.double()) <= threat.radius + 1e-6).all()


# --- Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patch(epsilon=1.5), "patch epsilon is a share of the image's area, at most 1, got 1.5"),
        (lambda: Patch(epsilon="-1/4"), "patch epsilon must be >= 0"),
        (lambda: Patch(epsilon=0.1, place=(0.5,)), r"patch place must be null or two numbers"),
        (lambda: Patch(epsilon=0.1, place=(0.5, 1.5)), r"patch place must be null or two numbers"),
        (lambda: Frame(epsilon=1.5), "frame epsilon is a width in whole pixels, got 1.5"),
        (lambda: Frame(epsilon="-1"), "frame epsilon must be >= 0"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_place_that_nobody_drew_is_told():
    clean = images()
    with pytest.raises(UserError, match="patch place null"):
        Patch(epsilon=0.1).project(clean, clean)


def test_a_patch_of_less_than_a_pixel_is_told():
    with pytest.raises(UserError, match=r"patch epsilon 0.01 is less than one pixel of an image of 6 x 6"):
        attack(Patch(epsilon=0.01))(Linear(), images(), LABEL, INDEX)


def test_a_description_names_norm_and_share():
    described = attack(Patch(epsilon="64/1024")).describe()
    assert (described["norm"], described["epsilon"]) == ("patch", "64/1024")
    assert math.isclose(Patch(epsilon="64/1024").radius, 0.0625)
