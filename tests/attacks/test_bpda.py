import pytest
import torch
from torch import nn

from robustfg.attacks import Bpda, CrossEntropy, Engine, GradientAttack, Linf, Steepest, differentiable
from robustfg.attacks.gradient.bpda import identity
from robustfg.core.errors import UserError


class Quantise(nn.Module):
    """Rounds pixels to a few levels: its derivative is zero almost everywhere."""

    def forward(self, image):
        return (image * 8).round() / 8


class Quantised(nn.Module):
    """A small net behind a quantiser, with a batch norm, so that attacks search on a folded copy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.ModuleDict({"quantise": Quantise()})
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
        )
        self.eval()

    def forward(self, image):
        return self.layers(self.front["quantise"](image))


def images(count=24, seed=0):
    return torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def pgd(**options):
    return GradientAttack(
        threat=Linf(epsilon=0.1), step=Steepest(size="eps/4"), steps=20, objective=CrossEntropy(), **options
    )


def robust(model, attack):
    clean = images()
    label = model(clean).argmax(1)
    (attempt,) = attack.attempts(model, clean, label)
    return (model(attempt.image).argmax(1) == label).double().mean().item(), attempt


@pytest.mark.parametrize("fold", [True, False])
def test_a_quantised_model_withstands_pgd_by_dead_gradients_and_falls_with_bpda(fold):
    model, attack = Quantised(), pgd(engine=Engine(fold=fold))
    before, attempt = robust(model, attack)
    assert before == 1.0
    assert attempt.dead_gradient.all()
    with differentiable(model, {"front.quantise": identity}):
        during, attempt = robust(model, attack)
    assert during < 0.2
    assert not attempt.dead_gradient.any()
    after, attempt = robust(model, attack)
    assert after == 1.0
    assert attempt.dead_gradient.all()


def test_what_bpda_finds_holds_for_the_model_itself():
    model, clean = Quantised(), images()
    label = model(clean).argmax(1)
    with differentiable(model, {"front.quantise": identity}):
        found = pgd()(model, clean, label)
    assert (model(found).argmax(1) != label).double().mean() > 0.8


def test_it_answers_like_the_module_and_differentiates_like_the_surrogate():
    image = images(2).double().requires_grad_()
    part = Bpda(Quantise(), lambda value: value**3)
    assert torch.equal(part(image), Quantise()(image))
    (gradient,) = torch.autograd.grad(part(image).square().sum(), image)
    expected = 2 * Quantise()(image) * 3 * image**2  # outer derivative at the exact answer, inner of the surrogate
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)


def test_a_trained_surrogate_is_part_of_the_module():
    surrogate = nn.Conv2d(3, 3, 1)
    assert dict(Bpda(Quantise(), surrogate).named_parameters()).keys() == {"surrogate.weight", "surrogate.bias"}


def test_a_surrogate_of_another_shape_is_told():
    with pytest.raises(UserError, match=r"must give the module's shape \(2, 3, 6, 6\), it gives \(2, 3\)"):
        Bpda(Quantise(), lambda image: image.mean((2, 3)))(images(2))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_parts_are_put_back_also_after_an_error(error):
    model = Quantised()
    before = list(model.named_modules())

    def interrupted():
        with differentiable(model, {"front.quantise": identity, "layers.2": identity}):
            assert type(model.front["quantise"]) is type(model.layers[2]) is Bpda
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(model.named_modules()) == before


def test_parts_of_parts_can_be_replaced_together():
    model = nn.Sequential(nn.Sequential(Quantise(), nn.ReLU()), nn.Flatten())
    before = list(model.named_modules())
    with differentiable(model, {"0": identity, "0.0": identity}):
        assert type(model[0]) is Bpda
        assert type(model[0].exact[0]) is Bpda
        assert torch.equal(model(images(2)), nn.Flatten()(Quantise()(images(2)).relu()))
    assert list(model.named_modules()) == before


class Twice(nn.Module):
    """Asks one quantiser under two names, beside another one that has only one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(Quantise())
        self.second = nn.Sequential(self.first[0])
        self.other = Quantise()

    def forward(self, image):
        return self.first(image) + 2 * self.second(image) + 4 * self.other(image)


@pytest.mark.parametrize("name", ["first.0", "second.0"])
def test_a_part_that_stands_in_two_places_is_replaced_in_both_and_put_back(name):
    model, image = Twice(), images(2).requires_grad_()
    before = list(model.named_modules(remove_duplicate=False))
    with differentiable(model, {name: identity}):
        (gradient,) = torch.autograd.grad(model(image).sum(), image)
        assert torch.equal(gradient, torch.full_like(image, 3.0))
        assert type(model.other) is Quantise
    assert list(model.named_modules(remove_duplicate=False)) == before


def test_one_part_under_two_names_cannot_have_two_surrogates():
    model = Twice()
    before = list(model.named_modules(remove_duplicate=False))
    with (
        pytest.raises(UserError, match="'first.0' and 'second.0' are the same part; name it once"),
        differentiable(model, {"first.0": identity, "second.0": torch.sin}),
    ):
        pass
    assert list(model.named_modules(remove_duplicate=False)) == before


@pytest.mark.parametrize("name", ["front.quantize", ""])
def test_a_part_that_is_not_there_is_told_and_nothing_is_changed(name):
    model = Quantised()
    before = list(model.named_modules())
    with (
        pytest.raises(UserError, match=f"the model has no part '{name}'; it has front, front.quantise, layers"),
        differentiable(model, {"front.quantise": identity, name: identity}),
    ):
        pass
    assert list(model.named_modules()) == before


def test_modes_of_the_replaced_parts_are_kept():
    model = Quantised()
    model.front["quantise"].train()
    with differentiable(model, {"front.quantise": identity}):
        assert model.front["quantise"].training
        assert not model.layers.training
    model.eval()
    with differentiable(model, {"front.quantise": identity}):
        assert not any(module.training for module in model.modules())


# --- Expectation over transformation


class Noisy(nn.Module):
    """A linear model behind strong noise on its slope, fresh in every forward pass, for each image alone."""

    def __init__(self, spread):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(2)))
        self.spread = spread

    def forward(self, image):
        noise = self.spread * torch.randn(image.shape)
        score = 50 + (image * (self.weight + noise)).flatten(1).sum(1)
        return torch.stack([score, -score], 1) / 2


def test_averaging_over_a_models_noise_gives_a_stronger_attack_than_a_single_draw():
    """The noiseless score that one step leaves, beside the optimum of the noiseless model: the nearer the stronger."""
    clean, label = torch.full((60, 3, 6, 6), 0.5), torch.zeros(60, dtype=torch.int64)
    model = Noisy(spread=4.0)
    taken = {}
    for samples in (1, 4, 16):
        attack = GradientAttack(
            threat=Linf(epsilon=0.1), step=Steepest(size="eps"), steps=1, last_iterate=True,
            engine=Engine(samples=samples),
        )  # fmt: skip
        torch.manual_seed(0)
        (attempt,) = attack.attempts(model, clean, label)
        taken[samples] = -((attempt.image - clean) * model.weight).flatten(1).sum(1).mean().item()
        assert attempt.forwards.tolist() == attempt.backwards.tolist() == [samples] * 60
    # A sign agrees with the weight's by Phi(|w| sqrt(n) / spread): the expected gain of a step, in closed form.
    size = model.weight.detach().abs()
    for samples, gain in taken.items():
        agree = torch.special.ndtr(size * samples**0.5 / model.spread)
        assert gain == pytest.approx(0.1 * (size * (2 * agree - 1)).sum().item(), rel=0.06)
    assert taken[1] < 0.6 * taken[4] < 0.6 * taken[16] / 1.5
