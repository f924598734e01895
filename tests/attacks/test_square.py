import json
import math

import pytest
import torch
from torch import nn

from robustfg.attacks import L0, L1, L2, CrossEntropy, GradientAttack, Linf, Margin, Square
from robustfg.attacks.black_box.square_patterns import Bumps, Flips, Peaks
from robustfg.attacks.black_box.windows import bump, two_bumps, window
from robustfg.attacks.rng.philox import keyed_signs
from robustfg.attacks.threats.lp import l1_projection
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric

INDEX = torch.tensor([7, 3, 12, 0, 99, 41])
ZERO = torch.zeros(6, dtype=torch.int64)
BALLS = pytest.mark.parametrize("threat", [Linf(epsilon=0.1), L2(epsilon=0.6), L1(epsilon=2)], ids=lambda t: t.norm)


def images(count=6, channels=3, height=8, width=8, low=0.3, high=0.7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (low + (high - low) * torch.rand(count, channels, height, width, generator=generator)).to(dtype)


class Linear(nn.Module):
    """The margin of class 0 is w.x plus a bias that no small change overcomes. Exact in float64 for dyadic pixels."""

    def __init__(self, shape=(3, 8, 8), bias=100.0, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randint(-9, 10, shape, generator=generator).double())
        self.bias, self.scale = bias, scale

    def forward(self, image):
        assert not torch.is_grad_enabled()
        score = (image * self.weight.to(image)).flatten(1).sum(1) + self.bias
        return self.scale * torch.stack([score, torch.zeros_like(score)], 1)


class Watched:
    """Remembers every batch it is asked about."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, image):
        self.seen.append(image.clone())
        return self.model(image)


def indifferent(image):
    """Logits that no image changes, so that no proposal is kept and each one changes the start."""
    return torch.tensor([[1.0, 0.0]], dtype=image.dtype).expand(len(image), -1).clone()


def proposals(attack, clean, model=indifferent):
    watched = Watched(model)
    next(attack.attempts(watched, clean, ZERO[: len(clean)], INDEX[: len(clean)]))
    return watched.seen


def naive_side(query, queries, p_init, height, width, rescale=True):
    """The window's side in the words of the paper, for the l-inf attack; its first proposal has number 0."""
    iteration = int((query - 1) / queries * 10_000) if rescale else query - 1
    p = p_init
    for border in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        if iteration > border:
            p = p / 2
    return max(1, round(math.sqrt(p * height * width)))


# --- Windows


@pytest.mark.parametrize(("size", "height", "width"), [(1, 4, 4), (3, 5, 7), (4, 4, 9), (5, 5, 5)])
def test_windows_reach_every_place_and_none_beyond(size, height, width):
    """auto-attack's Square never touches the last row and column."""
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    place = torch.cat([ends, torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))])
    positions = window(size, height, width, place)
    rows, columns = positions // width, positions % width
    assert (rows.amax(1) - rows.amin(1) == size - 1).all()
    assert (columns.amax(1) - columns.amin(1) == size - 1).all()
    assert all(len(set(row)) == size * size for row in positions.tolist())
    corners = set(zip(rows[:, 0].tolist(), columns[:, 0].tolist(), strict=True))
    assert corners == {(r, c) for r in range(height - size + 1) for c in range(width - size + 1)}


@BALLS
def test_the_attack_changes_every_row_and_column(threat):
    clean = images(2, height=6, width=7)
    start, *asked = proposals(Square(threat=threat, queries=300), clean)
    changed = sum((image != start).any(1).long() for image in asked[100:])
    assert (changed.amax(1) > 0).all()
    assert (changed.amax(2) > 0).all()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("p_init", [0.8, 0.3])
def test_window_sides_follow_the_schedule(rescale, p_init):
    clean, queries = images(4, height=16, width=16), 120
    attack = Square(threat=Linf(epsilon=0.1), queries=queries, p_init=p_init, rescale_schedule=rescale)
    start, *asked = proposals(attack, clean)
    sides, tops = [], []
    for query, image in enumerate(asked, 1):
        rows = (image != start).any(3).any(1)  # all rows of a window differ from vertical stripes somewhere, or none
        sides.append(rows.sum(1).max().item())
        tops.append(tuple(row.nonzero()[0].item() for row in rows if row.any()))
        assert set(rows.sum(1).tolist()) <= {0, naive_side(query, queries, p_init, 16, 16, rescale)}
    assert sides == [naive_side(query, queries, p_init, 16, 16, rescale) for query in range(1, queries)]
    assert sum(len(set(places)) > 1 for places in tops[60:]) > 40  # every sample has its own windows


def test_windows_fit_images_that_are_not_square():
    for threat in (Linf(epsilon=0.1), L2(epsilon=0.5), L1(epsilon=2)):
        for height, width in ((2, 30), (30, 3), (1, 1), (2, 2)):
            asked = proposals(Square(threat=threat, queries=40), images(2, height=height, width=width))
            assert len(asked) == 40


# --- Proposals


@BALLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_asked_about_is_allowed(threat, dtype):
    clean = images(low=0.0, high=1.0, dtype=dtype)
    for image in proposals(Square(threat=threat, queries=200), clean, Linear()):
        threat.check(image, clean)


def test_linf_starts_at_vertical_stripes_of_keyed_signs():
    clean = images()
    start = proposals(Square(threat=Linf(epsilon=0.1), queries=1, seed=4, name="mine"), clean)[0]
    signs = keyed_signs(24, INDEX, 4, "mine", 0, 0, "stripes").view(6, 3, 1, 8).double()
    assert torch.allclose(start, clean + 0.1 * signs, rtol=0, atol=1e-12)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()], ids=lambda o: o.name)
def test_a_proposal_changes_one_window_of_the_image_with_the_highest_objective_so_far(objective):
    """With three classes cross-entropy and margin, which decides what is returned, rank images differently."""
    clean, queries, two = images(1, height=16, width=16), 300, Linear((3, 16, 16), bias=500.0, scale=0.01)

    def net(image):
        return torch.cat([two(image), 0.01 * (image * two.weight.flip(2)).flatten(1).sum(1, keepdim=True)], 1)

    attack = Square(threat=Linf(epsilon=0.05), queries=queries, objective=objective)
    best, *asked = proposals(attack, clean, net)
    with torch.no_grad():
        value, kept = objective(net(best), ZERO[:1]).item(), 0
        for query, image in enumerate(asked, 1):
            rows, columns = (image != best)[0].any(0).nonzero().unbind(1)
            side = naive_side(query, queries, 0.8, 16, 16)
            assert len(rows)  # never the same image again
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side
            found = objective(net(image), ZERO[:1]).item()
            if found > value:
                best, value, kept = image, found, kept + 1
    assert 20 < kept < 250


@pytest.mark.parametrize("channels", [1, 3])
def test_no_query_is_wasted_on_an_image_that_is_already_the_best(channels):
    clean = images(height=4, width=4, channels=channels)
    start, *asked = proposals(Square(threat=Linf(epsilon=0.1), queries=300), clean)
    assert all((image != start).flatten(1).any(1).all() for image in asked)


def test_a_window_that_would_stay_gets_each_other_sign_pattern():
    clean = torch.full((700, 3, 1, 1), 0.5, dtype=torch.float64)
    drawn = torch.rand(700, 6, generator=torch.Generator().manual_seed(0))
    drawn[:, 3:] = 0.0  # all signs positive, as the image has them
    image = Flips(radius=0.1).propose(clean + 0.1, clean, drawn, 1)
    patterns = (image > clean).flatten(1).long() @ torch.tensor([1, 2, 4])
    counts = patterns.bincount(minlength=8).tolist()
    assert counts[7] == 0
    assert min(counts[:7]) > 60  # 100 expected


# --- Bumps


def naive_bump(h1, h2, decay):
    """Equation 2 with its own indices, which begin at 1."""
    n = max(h1, h2) // 2
    profile = torch.zeros(h1, h2, dtype=torch.float64)
    for r in range(1, h1 + 1):
        for s in range(1, h2 + 1):
            m = n - max(abs(r - h1 // 2 - 1), abs(s - h2 // 2 - 1))
            profile[r - 1, s - 1] = sum(1 / (n + 1 - k) ** decay for k in range(m + 1))
    return profile


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 5), (3, 5), (4, 4), (7, 7)])
@pytest.mark.parametrize("decay", [2, 4])
def test_a_bump_follows_the_papers_formula(height, width, decay):
    assert torch.allclose(bump(height, width, decay), naive_bump(height, width, decay), rtol=0, atol=1e-12)


def naive_bumps(image, clean, drawn, side, radius, order):
    """Algorithm 3 for one sample, channel by channel; in l1 with AutoAttack's factor and projection."""
    change = image - clean
    channels, height, width = change.shape

    def norm(part):
        return part.abs().pow(order).sum().item() ** (1 / order)

    top1, left1, top2, left2 = (
        int(u * (room - side + 1)) for u, room in zip(drawn[:4].double(), [height, width] * 2, strict=True)
    )
    first = (slice(top1, top1 + side), slice(left1, left1 + side))
    second = (slice(top2, top2 + side), slice(left2, left2 + side))
    union = torch.zeros(height, width, dtype=torch.bool)
    union[first] = union[second] = True
    unused = radius**order - norm(change) ** order
    eta = two_bumps(side, order, {1: 4, 2: 2}[order])
    eta = eta.T if drawn[4] < 0.5 else eta
    new = change.clone()
    for channel in range(channels):
        available = (norm(change[channel][union]) ** order + unused / channels) ** (1 / order)
        sign = 1 if drawn[5 + channel] < 0.5 else -1
        update = sign * eta + change[channel][first] / norm(change[channel][first])
        new[channel][second] = 0
        new[channel][first] = update / norm(update) * available * {1: channels, 2: 1}[order]
    if order == 1:
        new = l1_projection(new[None], clean[None], radius)[0]
    return (clean + new).clamp(0, 1)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("side", [3, 5])
def test_bumps_equal_the_algorithm_written_out_for_every_sample(order, side):
    clean, generator = images(40), torch.Generator().manual_seed(3)
    radius = {1: 3.0, 2: 0.7}[order]
    change = torch.randn(40, 3, 8, 8, generator=generator, dtype=torch.float64)
    size = torch.linalg.vector_norm(change, order, (1, 2, 3), keepdim=True)
    image = clean + change / size * radius * 0.9
    drawn = torch.rand(40, 8, generator=generator)
    found = {1: Peaks, 2: Bumps}[order](radius=radius).propose(image, clean, drawn, side)
    for sample in range(40):
        naive = naive_bumps(image[sample], clean[sample], drawn[sample], side, radius, order)
        assert torch.allclose(found[sample], naive, rtol=0, atol=1e-9)


def test_l1_starts_at_the_peaks_of_the_bumps():
    clean = images(low=0.5, high=0.5, height=20, width=20)
    start = proposals(Square(threat=L1(epsilon=6), queries=1), clean)[0]
    moved = (start != clean).flatten(1).double().mean(1)
    assert (moved < 0.2).all()
    assert torch.allclose(L1(epsilon=6).size(start - clean), torch.full((6,), 6.0).double(), rtol=1e-6)


@pytest.mark.parametrize("threat", [L2(epsilon=0.6), L1(epsilon=2)], ids=lambda t: t.norm)
def test_bumps_use_the_whole_radius_where_the_box_does_not_cut(threat):
    clean = images(low=0.5, high=0.5)
    for image in proposals(Square(threat=threat, queries=60), clean, Linear()):
        assert torch.allclose(threat.size(image - clean), torch.full((6,), threat.radius).double(), rtol=1e-6)


# --- What it finds


@pytest.mark.parametrize(
    ("threat", "dual", "share", "queries"),
    [(Linf(epsilon=0.1), 1, 0.9999, 1200), (L2(epsilon=0.3), 2, 0.5, 600), (L1(epsilon=1), torch.inf, 0.55, 600)],
    ids=["linf", "l2", "l1"],
)
def test_a_linear_margin_falls_nearly_as_far_as_it_can(threat, dual, share, queries):
    """Windows of l2 and l1 are at least 3 wide, so that they cannot follow single weights."""
    net, clean = Linear((3, 4, 4)), images(height=4, width=4, low=0.45, high=0.55)
    attempt = next(Square(threat=threat, queries=queries).attempts(net, clean, ZERO, INDEX))
    with torch.no_grad():
        drop = net(clean)[:, 0] - net(attempt.image)[:, 0]
    best = threat.radius * torch.linalg.vector_norm(net.weight.detach(), dual).item()
    assert (drop <= best * (1 + 1e-9)).all()
    assert (drop >= share * best).all()
    assert attempt.forwards.tolist() == [queries] * 6


def test_a_model_whose_gradient_is_zero_everywhere_is_broken_without_it():
    weight = Linear().weight.detach()

    def quantised(image):
        score = ((image * 32).round() / 32 * weight).flatten(1).sum(1)
        score = score - score.new_tensor(offsets[: len(score)])
        return torch.stack([score, torch.zeros_like(score)], 1)

    clean = images()
    offsets = [0.0] * 6
    offsets = (quantised(clean)[:, 0] - 5).tolist()  # every margin is 5
    threat = Linf(epsilon=0.1)
    attack = Square(threat=threat, queries=200)
    blind = next(GradientAttack(threat=threat).attempts(quantised, clean, ZERO, INDEX))
    assert blind.dead_gradient.all()
    assert (blind.margin > 0).all()
    for row in range(6):  # one by one, because samples leave and the offsets are the samples'
        one = slice(row, row + 1)
        offsets[0] = offsets[row]
        attempt = next(attack.attempts(quantised, clean[one], ZERO[one], INDEX[one]))
        assert attempt.margin.item() < 0
        assert attempt.backwards.item() == 0
        assert 0 <= attempt.first_success.item() == attempt.forwards.item() - 1


def test_fooled_samples_leave_and_the_others_spend_every_query_once():
    clean = images()
    net = Linear(bias=0.0)
    with torch.no_grad():
        net.bias = (-net(clean)[:, 0]).median().item() + 15.0
    label = ZERO
    watched = Watched(net)
    attempt = next(Square(threat=Linf(epsilon=0.02), queries=150).attempts(watched, clean, label, INDEX))
    fooled = attempt.margin < 0
    assert fooled.any()
    assert not fooled.all()
    assert (attempt.forwards[fooled] == attempt.first_success[fooled] + 1).all()
    assert (attempt.forwards[~fooled] == 150).all()
    assert sum(len(image) for image in watched.seen) == attempt.forwards.sum()


# --- The same everywhere


@BALLS
def test_results_are_bit_equal_in_any_batch_and_order(threat):
    clean = (images() * 64).round() / 64
    net = Linear()
    attack = Square(threat=threat, queries=45, restarts=2)
    label, order = ZERO, torch.tensor([4, 0, 5, 2, 1, 3])
    together = attack(net, clean, label, INDEX)
    shuffled = attack(net, clean[order], label[order], INDEX[order])
    assert torch.equal(shuffled, together[order])
    for size in (1, 4):
        parts = [attack(net, *part) for part in zip(*(x.split(size) for x in (clean, label, INDEX)), strict=True)]
        assert torch.equal(torch.cat(parts), together)


@BALLS
def test_samples_that_leave_do_not_change_what_the_others_are_asked(threat):
    clean = (images() * 64).round() / 64
    net, attack = Linear(), Square(threat=threat, queries=80)
    alone = attack(net, clean[1:], ZERO[1:], INDEX[1:])

    def first_falls_late(image):
        logits = net(image)
        calls.append(len(image))
        if len(calls) == 11 and len(image) == 6:
            logits[0, 1] = 1e6
        return logits

    calls = []
    assert torch.equal(attack(first_falls_late, clean, ZERO, INDEX)[1:], alone)
    assert calls[10:12] == [6, 5]


@BALLS
def test_seed_name_draw_and_restart_change_start_and_proposals(threat):
    clean = images()
    attack = Square(threat=threat, queries=40)
    first = proposals(attack, clean)
    again = proposals(attack, clean)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [proposals(Square(threat=threat, queries=40, **o), clean) for o in ({"seed": 1}, {"name": "other"})]
    for draw, restarts in ((1, 1), (0, 2)):
        watched = Watched(indifferent)
        many = Square(threat=threat, queries=40, restarts=restarts)
        list(many.attempts(watched, clean, ZERO, INDEX, draw=draw))
        others.append(watched.seen[-40:])
    for other in others:
        for place in (0, 1, 39):
            assert not torch.allclose(other[place], first[place], atol=1e-4)


# --- Borders


@BALLS
def test_an_epsilon_of_zero_gives_the_clean_image(threat):
    clean = images()
    attempt = next(Square(threat=type(threat)(epsilon=0), queries=20).attempts(Linear(), clean, ZERO, INDEX))
    assert torch.equal(attempt.image, clean)


def test_a_start_without_an_answer_does_not_stop_the_search():
    net, calls = Linear(scale=0.05), []

    def stumbling(image):
        calls.append(1)
        return net(image) * (float("nan") if len(calls) == 1 else 1.0)

    for objective in (Margin(), CrossEntropy()):
        calls.clear()
        attack = Square(threat=Linf(epsilon=0.1), queries=300, objective=objective)
        attempt = next(attack.attempts(stumbling, images(), ZERO, INDEX))
        with torch.no_grad():
            assert (attempt.margin < net(images())[:, 0]).all()


def test_an_empty_batch_gives_an_empty_batch():
    assert Square(threat=Linf(epsilon=0.1))(Linear(), images()[:0], ZERO[:0], INDEX[:0]).shape == (0, 3, 8, 8)


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = Square(threat=L2(epsilon="128/255"), queries=77, p_init=0.3, rescale_schedule=False, restarts=2, seed=5)
    assert json.loads(json.dumps(attack.describe())) == {
        "norm": "l2", "epsilon": "128/255", "steps": 77, "rescale_schedule": False, "restarts": 2,
        "objective": "margin", "seed": 5, "p_init": 0.3,
    }  # fmt: skip
    assert attack.passes == 154


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be >= 1, got 0"),
        ({"p_init": 0}, r"p_init must be in \(0, 1\], got 0"),
        ({"p_init": 1.5}, r"p_init must be in \(0, 1\], got 1.5"),
        ({"threat": L0(epsilon=3)}, "square knows linf, l2 and l1 threats, got l0"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        Square(**({"threat": Linf(epsilon=0.1)} | options))
