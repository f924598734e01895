import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustfg.attacks import L2, CrossEntropy, GradientAttack, Linf, Margin, Momentum, Steepest
from robustfg.attacks.rng.philox import keyed_uniforms
from robustfg.core.errors import UserError
from robustfg.core.types import Output

pytestmark = pytest.mark.numeric

LABEL = torch.tensor([0, 1, 0, 1, 1, 0])
INDEX = torch.tensor([7, 3, 12, 0, 99, 41])
AWAY = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None, None]
"""The sign by which a score of class 0 must change to hurt each sample."""
BOTH = pytest.mark.parametrize("kind", [Linf, L2])


class Linear(nn.Module):
    """Two logits, +s/2 and -s/2: the margin of class 0 is s = w.x + bias, that of class 1 is -s."""

    def __init__(self, channels=3, size=4, bias=0.0, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(channels, size, size, generator=generator, dtype=torch.float64))
        self.bias = bias

    def score(self, image):
        return (image * self.weight).flatten(1).sum(1) + self.bias

    def forward(self, image):
        return torch.stack([self.score(image), -self.score(image)], 1) / 2


class Sure(Linear):
    """A linear model that favours the true class by 100, so that no small step fools it."""

    def forward(self, image):
        score = self.score(image) + 100 * (1 - 2 * LABEL)
        return torch.stack([score, -score], 1) / 2


class Net(nn.Sequential):
    """A small smooth convolutional net in float64, centred so that it predicts all of its five classes."""

    def __init__(self, channels=3):
        torch.manual_seed(1)
        conv = nn.Conv2d(channels, 8, 3, padding=1)
        super().__init__(conv, nn.Softplus(beta=5), nn.Flatten(), nn.Linear(8 * 16, 5))
        self.double()
        self[3].weight.data *= 10
        self[3].bias.data -= self(images(64, channels)).detach().mean(0)


class Log(nn.Module):
    """Counts passes per sample: the pixel [0, 0, 0] has no weight, so no step moves it and it can name the sample."""

    def __init__(self):
        super().__init__()
        self.model = Linear()
        self.model.weight.data[0, 0, 0] = 0
        self.forwards, self.backwards, self.first_wrong = Counter(), Counter(), {}

    def forward(self, image):
        names = [round(value) for value in (image[:, 0, 0, 0] * 100).tolist()]
        logits = self.model(image)
        for name, wrong in zip(names, (logits.argmax(1) != 0).tolist(), strict=True):
            if wrong:
                self.first_wrong.setdefault(name, self.forwards[name])
        self.forwards.update(names)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.backwards.update(names))
        return logits


def images(count=6, channels=3, size=4, seed=0, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


def pgd(kind=Linf, epsilon=0.1, size="eps/4", steps=5, decay=None, **options):
    rule = Steepest(size=size) if decay is None else Momentum(size=size, decay=decay)
    return GradientAttack(threat=kind(epsilon=epsilon), step=rule, steps=steps, **options)


def margins(model, image, label):
    """True logit minus the largest other one, by sorting."""
    with torch.no_grad():
        logits = model(image)
    logits = logits.logits if isinstance(logits, Output) else logits
    return torch.tensor(
        [
            row[true] - max(value for place, value in enumerate(row) if place != true)
            for row, true in zip(logits.tolist(), label.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def score_of(name, logits, label):
    if name == "cross_entropy":
        return F.cross_entropy(logits, label)
    return logits[0, [k for k in range(logits.shape[1]) if k != label]].max() - logits[0, label[0]]


def naive_iterates(model, clean, label, start, norm, epsilon, size, steps, objective, decay=None):
    """Every iterate of one sample ``(1, C, H, W)``, in the words of the papers."""
    iterates, velocity = [start], 0
    for _ in range(steps):
        image = iterates[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score_of(objective.name, model(image), label), image)
        if decay is not None:
            velocity = decay * velocity + gradient / gradient.abs().mean()
            gradient = velocity
        if norm == "linf":
            change = (image.detach() + size * gradient.sign() - clean).clamp(-epsilon, epsilon)
        else:
            change = image.detach() + size * gradient / gradient.square().sum().sqrt() - clean
            change = change * min(1.0, epsilon / change.square().sum().sqrt().item())
        iterates.append((clean + change).clamp(0, 1))
    return iterates


def starts_of(attack, clean, index=INDEX, draw=0, restart=0):
    noise = attack.threat.uniform(clean, index, attack.seed, attack.name, draw, restart)
    return attack.threat.project(clean + noise, clean)


# --- Closed forms


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_fgsm_on_a_linear_model_steps_to_the_corner_that_the_weights_point_away_from(objective):
    model, clean = Sure(), images()
    attack = pgd(size="eps", steps=1, objective=objective)
    expected = (clean + 0.1 * AWAY * model.weight.detach().sign()).clamp(0, 1)
    assert torch.allclose(attack(model, clean, LABEL, INDEX), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("last_iterate", [False, True])
@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_linf_pgd_lowers_a_linear_margin_by_epsilon_times_the_l1_norm(random_start, last_iterate, objective):
    model, clean = Sure(), images(low=0.3, high=0.7)
    attack = pgd(steps=12, random_start=random_start, last_iterate=last_iterate, objective=objective)
    drop = margins(model, clean, LABEL) - margins(model, attack(model, clean, LABEL, INDEX), LABEL)
    assert torch.allclose(drop, torch.full_like(drop, 0.1 * model.weight.abs().sum().item()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("last_iterate", [False, True])
@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_l2_pgd_lowers_a_linear_margin_by_epsilon_times_the_l2_norm(last_iterate, objective):
    model, clean = Sure(), images(low=0.4, high=0.6)
    attack = pgd(L2, steps=4, last_iterate=last_iterate, objective=objective)
    drop = margins(model, clean, LABEL) - margins(model, attack(model, clean, LABEL, INDEX), LABEL)
    assert torch.allclose(drop, torch.full_like(drop, 0.1 * model.weight.norm().item()), rtol=0, atol=1e-9)


def test_cross_entropy_finds_nothing_at_a_gap_of_104_where_the_margin_does():
    model, clean = Linear(bias=150.0).float(), images().float()
    label = torch.zeros(6, dtype=torch.int64)
    assert torch.equal(pgd(objective=CrossEntropy())(model, clean, label, INDEX), clean)
    dead, alive = (next(pgd(objective=o).attempts(model, clean, label, INDEX)) for o in (CrossEntropy(), Margin()))
    assert dead.dead_gradient.all()
    assert not alive.dead_gradient.any()
    assert (alive.margin < margins(model, clean, label)).all()


# --- Trajectories


@BOTH
@pytest.mark.parametrize("model", [Sure(), Net()], ids=["linear", "net"])
@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()], ids=["margin", "cross_entropy"])
@pytest.mark.parametrize(
    ("random_start", "decay"),
    [(True, None), (False, None), (False, 1.0), (True, 0.7)],
    ids=["PGD", "BIM", "MIM", "MIM-random"],
)
def test_the_last_iterate_equals_a_naive_loop(kind, model, objective, random_start, decay):
    clean, epsilon = images(), 0.15 if kind is Linf else 0.6
    attack = pgd(kind, epsilon, steps=6, decay=decay, objective=objective, random_start=random_start, last_iterate=True)
    found = attack(model, clean, LABEL, INDEX)
    starts = starts_of(attack, clean) if random_start else clean
    for sample in range(6):
        one = slice(sample, sample + 1)
        alone = model if isinstance(model, Net) else lambda image, one=one: model(image.expand(6, -1, -1, -1))[one]
        iterates = naive_iterates(
            alone, clean[one], LABEL[one], starts[one], attack.threat.norm, epsilon, epsilon / 4, 6, objective, decay
        )
        assert torch.allclose(found[one], iterates[-1], rtol=0, atol=1e-10)


@BOTH
@pytest.mark.parametrize("decay", [None, 1.0])
def test_the_worst_iterate_up_to_the_first_mistake_equals_a_naive_search(kind, decay):
    model, clean, epsilon = Net(), images(), 0.1 if kind is Linf else 0.4
    label = model(clean).argmax(1)
    attack = pgd(kind, epsilon, steps=8, decay=decay, random_start=True)
    attempt, starts = next(attack.attempts(model, clean, label, INDEX)), starts_of(attack, clean)
    for sample in range(6):
        one = slice(sample, sample + 1)
        iterates = naive_iterates(
            model, clean[one], label[one], starts[one], attack.threat.norm, epsilon, epsilon / 4, 8, Margin(), decay
        )
        seen = [margins(model, image, label[one]).item() for image in iterates]
        first = next((taken for taken, margin in enumerate(seen) if margin < 0), -1)
        tried = seen if first < 0 else seen[: first + 1]
        worst = min(range(len(tried)), key=tried.__getitem__)
        assert torch.allclose(attempt.image[one], iterates[worst], rtol=0, atol=1e-10)
        assert attempt.margin[sample].item() == pytest.approx(seen[worst], abs=1e-10)
        assert attempt.first_success[sample].item() == first
    assert (attempt.first_success > 0).any()


def test_momentum_takes_another_way_than_plain_steps():
    attacks = [pgd(steps=8, decay=decay, last_iterate=True) for decay in (None, 1.0)]
    plain, momentum = (attack(Net(), images(), LABEL, INDEX) for attack in attacks)
    assert not torch.allclose(plain, momentum, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1e10])
def test_momentum_weighs_every_gradient_alike_whatever_its_size(scale):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, 4, 4, generator=generator)
    rule, image, threat = Momentum(size="eps/4", decay=0.5), torch.zeros(4, 3, 4, 4), Linf(epsilon=0.1)
    memory = rule(image, first * scale, None, threat)[1]
    memory = rule(image, second, memory, threat)[1]
    expected = [0.5 * a / a.abs().mean() + b / b.abs().mean() for a, b in zip(first, second, strict=True)]
    assert torch.allclose(memory, torch.stack(expected), rtol=1e-4, atol=1e-5)


def valley(image):
    """Margin 1 + 100 (x - 0.6)^2 of class 0: from 0.5, steps of 0.15 go to 0.65 and back to 0.5."""
    score = 1 + 100 * (image.flatten(1).mean(1) - 0.6) ** 2
    return torch.stack([score, torch.zeros_like(score)], 1)


def test_the_worst_iterate_is_kept_when_a_later_one_is_better_for_the_defender():
    clean, label, index = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0]), torch.tensor([0])
    settings = {"epsilon": 0.3, "size": 0.15, "steps": 2}
    kept = next(pgd(**settings).attempts(valley, clean, label, index))
    last = next(pgd(**settings, last_iterate=True).attempts(valley, clean, label, index))
    assert kept.image.item() == pytest.approx(0.65)
    assert kept.margin.item() == pytest.approx(1.25)
    assert last.image.item() == pytest.approx(0.5)
    assert last.margin.isnan()  # nobody looked at it


# --- Starts and restarts


def first_images(attack, model, clean, index=INDEX, draw=0):
    """The first image that each restart shows to the model."""
    seen = []
    list(attack.attempts(lambda image: seen.append(image.detach()) or model(image), clean, LABEL, index, draw=draw))
    assert len(seen) == attack.restarts * attack.steps
    return seen[:: attack.steps]


def test_random_starts_are_keyed_by_seed_name_draw_restart_and_sample():
    clean = images(low=0.2, high=0.8)
    attack = pgd(random_start=True, restarts=2, seed=5, name="mine", last_iterate=True)
    starts = first_images(attack, Sure(), clean, draw=9)
    assert len(starts) == 2
    for restart, start in enumerate(starts):
        uniform = keyed_uniforms(48, INDEX, 5, "mine", 9, restart).view_as(clean).double()
        assert torch.allclose(start, clean + 0.1 * (2 * uniform - 1), rtol=0, atol=1e-7)


@BOTH
def test_draw_seed_and_name_change_the_random_start(kind):
    clean, options = images(), {"kind": kind, "random_start": True, "last_iterate": True}
    (first,) = first_images(pgd(**options), Sure(), clean)
    others = [
        first_images(pgd(**options), Sure(), clean, draw=1),
        first_images(pgd(**options, seed=1), Sure(), clean),
        first_images(pgd(**options, name="other"), Sure(), clean),
    ]
    for (other,) in others:
        assert not torch.allclose(first, other, atol=1e-4)
    (again,) = first_images(pgd(**options), Sure(), clean)
    assert torch.equal(first, again)


@BOTH
def test_without_a_random_start_the_first_restart_begins_at_the_clean_image_and_the_next_at_random(kind):
    clean = images()
    first, second = first_images(pgd(kind, restarts=2, last_iterate=True), Sure(), clean)
    assert torch.equal(first, clean)
    assert ((second - clean).flatten(1).abs().amax(1) > 1e-3).all()


def waves(image):
    """A margin of class 0 with many hollows, so that the start decides where the attack ends."""
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64)
    score = 5 + torch.sin(40 * (image.flatten(1) * weight).sum(1)) + image.flatten(1).mean(1)
    return torch.stack([score, torch.zeros_like(score)], 1)


@BOTH
def test_the_worst_restart_is_taken_per_sample(kind):
    clean, label = images(size=2), torch.zeros(6, dtype=torch.int64)
    attack = pgd(kind, size="eps/20", steps=2, random_start=True, restarts=4)
    tries = list(attack.attempts(waves, clean, label, INDEX))
    seen = torch.stack([margins(waves, attempt.image, label) for attempt in tries])
    winner = seen.argmin(0)
    found = attack(waves, clean, label, INDEX)
    assert len(set(winner.tolist())) > 1
    for sample, restart in enumerate(winner.tolist()):
        assert torch.equal(found[sample], tries[restart].image[sample])
    for attempt, margin in zip(tries, seen, strict=True):
        assert torch.allclose(attempt.margin, margin, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("last_iterate", [False, True])
def test_one_step_is_taken_and_its_result_counts(kind, last_iterate):
    """adv-lib's pgd_linf(steps=1) returns the clean image."""
    model, clean = Sure(), images()
    attack = pgd(kind, steps=1, random_start=True, last_iterate=last_iterate)
    start, found = starts_of(attack, clean), attack(model, clean, LABEL, INDEX)
    away = AWAY * model.weight.detach()
    direction = away.sign() if kind is Linf else away / model.weight.detach().norm()
    assert torch.allclose(found, attack.threat.project(start + 0.025 * direction, clean), rtol=0, atol=1e-12)
    assert (margins(model, found, LABEL) < margins(model, start, LABEL)).all()
    assert ((found - clean).flatten(1).abs().amax(1) > 1e-3).all()


@BOTH
@pytest.mark.parametrize("size", ["eps/4", "2/255"])
def test_epsilon_zero_returns_the_clean_image(kind, size):
    clean = images()
    attack = pgd(kind, "0", size=size, random_start=True, restarts=2, last_iterate=True)
    assert torch.equal(attack(Net(), clean, LABEL, INDEX), clean)


@BOTH
def test_adversarial_images_lie_in_the_ball_and_the_box_also_in_float32(kind):
    clean = images().float().round(decimals=1)
    attack = pgd(kind, "8/255", size="eps", steps=5, random_start=True, last_iterate=True)
    found = attack(Net().float(), clean, LABEL, INDEX).double()
    change = (found - clean.double()).flatten(1)
    size = change.abs().amax(1) if kind is Linf else change.square().sum(1).sqrt()
    assert (size <= 8 / 255 + 1e-6).all()
    assert found.min() >= 0
    assert found.max() <= 1


# --- Who is attacked, and for how long


def test_samples_already_wrong_come_back_as_they_are_with_success_at_zero():
    model, clean = Net(), images()
    label = (model(clean).argmax(1) + 1) % 5
    attempt = next(pgd().attempts(model, clean, label, INDEX))
    assert torch.equal(attempt.image, clean)
    assert attempt.first_success.tolist() == [0] * 6
    assert attempt.forwards.tolist() == [1] * 6
    assert (attempt.margin < 0).all()


def named_images():
    """Six images of class 0 that ``Log`` gives margins of -0.55, 0.45, 1.45, 2.45, 3.45 and 9.45 steps of 0.005."""
    log, clean = Log(), images(low=0.4, high=0.6)
    log.model.bias = -0.5 * log.model.weight.sum().item()
    clean[:, 0, 0, 0] = torch.arange(6) / 100
    weight = log.model.weight.detach()
    wanted = 0.005 * weight.abs().sum() * torch.tensor([-0.55, 0.45, 1.45, 2.45, 3.45, 9.45], dtype=torch.float64)
    shift = (wanted - log.model.score(clean).detach()) / weight.square().sum()
    return log, clean + shift[:, None, None, None] * weight


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_counts_and_first_success_are_what_the_model_sees_and_fooled_samples_leave(objective):
    log, clean = named_images()
    attack = pgd(epsilon=0.05, size=0.005, steps=6, objective=objective)
    attempt = next(attack.attempts(log, clean, torch.zeros(6, dtype=torch.int64), INDEX))
    assert attempt.first_success.tolist() == [0, 1, 2, 3, 4, -1]
    assert attempt.forwards.tolist() == [1, 2, 3, 4, 5, 7]
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)]
    assert attempt.backwards.tolist() == [log.backwards[name] for name in range(6)]
    assert attempt.first_success.tolist() == [log.first_wrong.get(name, -1) for name in range(6)]
    taken = [0.0, 0.005, 0.01, 0.015, 0.02, 0.03]
    assert (attempt.image - clean).flatten(1).abs().amax(1).tolist() == pytest.approx(taken, abs=1e-9)


def test_with_the_last_iterate_all_samples_take_all_steps_and_success_is_still_counted():
    log, clean = named_images()
    attack = pgd(epsilon=0.05, size=0.005, steps=6, last_iterate=True)
    attempt = next(attack.attempts(log, clean, torch.zeros(6, dtype=torch.int64), INDEX))
    assert attempt.first_success.tolist() == [0, 1, 2, 3, 4, -1]
    assert attempt.first_success.tolist() == [log.first_wrong.get(name, -1) for name in range(6)]
    assert attempt.forwards.tolist() == [log.forwards[name] for name in range(6)] == [6] * 6
    assert attempt.backwards.tolist() == [log.backwards[name] for name in range(6)] == [6] * 6
    assert (attempt.image - clean).flatten(1).abs().amax(1).tolist() == pytest.approx([0.03] * 6, abs=1e-9)


@BOTH
@pytest.mark.parametrize("decay", [None, 1.0])
def test_results_do_not_depend_on_batch_size_or_order(kind, decay):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    attack = pgd(kind, 0.1 if kind is Linf else 0.4, steps=8, decay=decay, random_start=True, restarts=2)
    together = attack(model, clean, label, INDEX)
    assert len(set(next(attack.attempts(model, clean, label, INDEX)).first_success.tolist())) > 1
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = attack(model, clean[order], label[order], INDEX[order])
    assert torch.allclose(shuffled, together[order], rtol=0, atol=1e-10)
    for size in (1, 4):
        parts = [attack(model, *part) for part in zip(*(x.split(size) for x in (clean, label, INDEX)), strict=True)]
        assert torch.allclose(torch.cat(parts), together, rtol=0, atol=1e-10)


# --- What the caller's world looks like during and after


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()], ids=["margin", "cross_entropy"])
def test_attacks_work_where_gradients_are_off_and_on_inference_tensors(context, random_start, objective):
    model, attack = Net(), pgd(random_start=random_start, restarts=2, objective=objective)
    expected = attack(model, images(), LABEL, INDEX)
    with context():
        clean, label, index = images() + 0.0, LABEL + 0, INDEX + 0
        assert clean.is_inference() == (context is torch.inference_mode)
        found = attack(model, clean, label, index)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert torch.equal(clean, images())
    assert torch.is_grad_enabled()


class Busy(nn.Module):
    """Batch norm, dropout, a frozen parameter and a part in eval mode; can be told to fail at a forward pass."""

    def __init__(self, fails_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.frozen_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.fails_at, self.calls = fails_at, 0
        self.train()
        self.frozen_norm.eval()
        self.head.bias.requires_grad_(False)
        self.head.weight.grad = torch.full_like(self.head.weight, 7.0)

    def forward(self, image):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("the model broke")
        return self.head(self.frozen_norm(self.features(image)).mean((2, 3)))

    def state(self):
        """Everything an attack might disturb."""
        return {
            "flags": [module.training for module in self.modules()],
            "trainable": [parameter.requires_grad for parameter in self.parameters()],
            "gradients": [p.grad if p.grad is None else p.grad.tolist() for p in self.parameters()],
            "tensors": {name: value.tolist() for name, value in self.state_dict().items()},
            "random": torch.get_rng_state().tolist(),
        }


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("fails_at", [None, 1, 3])
def test_the_model_and_the_random_state_are_given_back_as_they_were_also_after_an_error(fails_at, context):
    model, attack = Busy(fails_at), pgd(random_start=True, restarts=2, objective=CrossEntropy(), last_iterate=True)
    clean, before = images().float(), model.state()
    untouched = clean.clone()
    assert True in before["flags"]
    assert False in before["flags"]
    with context():
        if fails_at is None:
            attack(model, clean, LABEL, INDEX)
        else:
            with pytest.raises(RuntimeError, match="the model broke"):
                attack(model, clean, LABEL, INDEX)
    assert model.calls > 0
    assert model.state() == before
    assert torch.equal(clean, untouched)
    assert not clean.requires_grad
    assert torch.is_grad_enabled()


def test_the_model_is_given_back_while_attempts_are_still_being_taken():
    model = Busy()
    before, attempts = model.state(), pgd(restarts=3).attempts(model, images().float(), LABEL, INDEX)
    next(attempts)
    assert model.state() == before
    assert torch.is_grad_enabled()


def test_a_model_in_train_mode_is_attacked_in_eval_mode_with_frozen_parameters():
    model, seen = Busy(), []
    model.register_forward_hook(
        lambda module, args, output: seen.append(
            (any(m.training for m in module.modules()), any(p.requires_grad for p in module.parameters()))
        )
    )
    found = pgd()(model, images().float(), LABEL, INDEX)
    assert set(seen) == {(False, False)}
    assert torch.equal(found, pgd()(model.eval(), images().float(), LABEL, INDEX))


# --- Inputs and outputs


@pytest.mark.parametrize("value", [-0.01, 1.001, float("nan"), float("inf")])
def test_images_that_are_not_pixels_are_refused(value):
    clean = images()
    clean[2, 1, 0, 3] = value
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        pgd()(Net(), clean, LABEL, INDEX)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((6, 3, 4), 6), ((3, 4, 4), 3), ((6, 3, 4, 4), 5), ((6, 3, 4, 4), (6, 1)), ((1, 6, 3, 4, 4), 1)],
)
def test_wrong_shapes_are_refused(shape, labels):
    with pytest.raises(ValueError, match=r"need images \(B, C, H, W\) and labels \(B,\)"):
        pgd()(Net(), torch.rand(shape), torch.zeros(labels, dtype=torch.int64), INDEX)


@BOTH
@pytest.mark.parametrize("random_start", [False, True])
def test_an_empty_batch_gives_an_empty_batch(kind, random_start):
    attack = pgd(kind, random_start=random_start, restarts=2)
    clean, none = images()[:0], torch.zeros(0, dtype=torch.int64)
    assert attack(Net(), clean, none, none).shape == (0, 3, 4, 4)
    for attempt in attack.attempts(Net(), clean, none, none):
        counts = [attempt.margin, attempt.first_success, attempt.forwards, attempt.backwards, attempt.dead_gradient]
        assert [tuple(value.shape) for value in counts] == [(0,)] * 5


@BOTH
def test_one_channel_images_are_attacked(kind):
    model, clean = Net(channels=1), images(channels=1)
    label = model(clean).argmax(1)
    found = pgd(kind)(model, clean, label, INDEX)
    assert found.shape == (6, 1, 4, 4)
    assert (margins(model, found, label) < margins(model, clean, label)).all()


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_a_model_may_give_an_output_or_plain_logits(objective):
    model, attack = Net(), pgd(random_start=True, objective=objective)

    def rich(image):
        logits = model(image)
        return Output(logits=logits, embedding=image.flatten(1), heads={"other": -logits})

    assert torch.equal(attack(rich, images(), LABEL, INDEX), attack(model, images(), LABEL, INDEX))


def test_dead_gradients_are_flagged_per_sample_and_only_there():
    """Samples 0 and 1 are on the flat side of a ReLU, 2 and 3 on the infinite slope of a square root."""

    def model(image):
        mean = image.flatten(1).mean(1)
        flat = torch.relu(mean - 0.5)
        kink = image[:, 0, 0, 0].clamp_max(0.1).sqrt()
        return torch.stack([1 + flat + kink, torch.zeros_like(mean)], 1)

    clean = images(low=0.6, high=0.9)
    clean[:2], clean[2:4, 0, 0, 0] = 0.2, 0.0
    attack = pgd(last_iterate=True)
    attempt = next(attack.attempts(model, clean, torch.zeros(6, dtype=torch.int64), INDEX))
    assert attempt.dead_gradient.tolist() == [True, True, True, True, False, False]
    assert attempt.image.isfinite().all()
    assert torch.equal(attempt.image[:2], clean[:2])


@BOTH
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_is_zero_or_not_finite_everywhere_is_flagged_and_moves_nothing(kind, poison):
    def model(image):
        logits = torch.stack([image.flatten(1).sum(1), torch.full((len(image),), -1.0, dtype=image.dtype)], 1)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * poison)
        return logits

    attempt = next(pgd(kind).attempts(model, images(), torch.zeros(6, dtype=torch.int64), INDEX))
    assert attempt.dead_gradient.all()
    assert torch.equal(attempt.image, images())


# --- Settings


def test_a_description_is_json_and_names_what_makes_the_attack():
    attack = pgd(L2, "128/255", size="eps/4", steps=7, objective=CrossEntropy(), restarts=3, seed=2, random_start=True)
    described = json.loads(json.dumps(attack.describe()))
    expected = {
        "norm": "l2",
        "epsilon": "128/255",
        "steps": 7,
        "step_rule": "steepest",
        "step_size": "eps/4",
        "objective": "cross_entropy",
        "restarts": 3,
        "seed": 2,
        "random_start": True,
        "last_iterate": False,
    }
    assert described == expected


def test_attacks_that_differ_in_one_setting_have_other_descriptions():
    variants = [
        pgd(), pgd(L2), pgd(epsilon=0.2), pgd(size="eps"), pgd(steps=6), pgd(decay=1.0), pgd(decay=0.9),
        pgd(random_start=True), pgd(last_iterate=True), pgd(restarts=2), pgd(objective=CrossEntropy()), pgd(seed=1),
    ]  # fmt: skip
    assert len({json.dumps(attack.describe()) for attack in variants}) == len(variants)


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("option", ["steps", "restarts"])
def test_no_steps_and_no_restarts_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"{option} must be >= 1, got {value}"):
        pgd(**{option: value})


@pytest.mark.parametrize("rule", [Steepest, Momentum])
def test_a_bad_step_size_is_refused_when_the_rule_is_made(rule):
    with pytest.raises(UserError, match="step size"):
        rule(size="epsilon/4")


@pytest.mark.parametrize("cut", [lambda image: torch.zeros(len(image), 3), lambda image: image.detach().mean((2, 3))])
def test_a_model_that_cuts_the_graph_is_told_as_a_dead_gradient(cut):
    attack = GradientAttack(threat=Linf(epsilon="8/255"), step=Steepest(size="eps"), steps=2)
    image = torch.rand(4, 3, 2, 2)
    (attempt,) = attack.attempts(cut, image, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert attempt.dead_gradient.any()


def test_an_epsilon_beyond_the_pixel_range_is_refused():
    with pytest.raises(UserError, match="linf epsilon is a share of the pixel range"):
        Linf(epsilon=8)
