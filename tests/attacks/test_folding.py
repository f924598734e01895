import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
from torch import nn

from robustfg.attacks import FGSM, PGD, CrossEntropy, Engine, GradientAttack, Linf, folding
from robustfg.attacks.folding import folded
from robustfg.models import Backbone, layout


def settled(model, size=16):
    """Running statistics as of some images, so that folding has something to do."""
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(images(seed=seed, size=size))
    return model.eval()


def images(count=8, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


class Plain(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip

    def centred(self):
        """Predicts all its classes, with margins of the order of what a small perturbation does."""
        settled(self)
        with torch.no_grad():
            self[-1].bias -= self(images(64)).mean(0)
        return self


class Twice(nn.Module):
    """The convolution's output is used beside its norm too, so folding would be wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, image):
        map_ = self.conv(image)
        return self.head((map_ + self.norm(map_)).mean((2, 3)))


class Shared(nn.Module):
    """One convolution before two norms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        map_ = self.conv(image)
        return self.head((self.first(map_) + self.second(map_).relu()).mean((2, 3)))


@pytest.mark.parametrize(
    "make",
    [
        Plain,
        lambda: timm.create_model("resnet18", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
        lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5),
        lambda: Backbone(name="resnet18", image_size=16, options={"channels": [8, 8, 16, 16]}),
    ],
    ids=["plain", "resnet", "efficientnet", "backbone"],
)
def test_the_copy_answers_alike_without_batch_norms_and_so_does_its_gradient(make):
    model = settled(make())
    copy_ = folded(model, images())
    assert copy_ is not model
    assert norms(model)
    assert not norms(copy_)
    answers, slopes = [], []
    for network in (model, copy_):
        image = images(seed=9).requires_grad_()
        answer = network(image)
        slopes.append(torch.autograd.grad(answer.square().sum(), image)[0])
        answers.append(answer.detach())
    scale = answers[0].abs().max()
    assert torch.allclose(*answers, rtol=0, atol=float(1e-5 * scale))
    assert torch.allclose(*slopes, rtol=0, atol=float(1e-4 * slopes[0].abs().max()))


@pytest.mark.parametrize("make", [Twice, Shared])
def test_what_cannot_be_folded_is_left_as_it_is(make):
    model = settled(make())
    with torch.no_grad():
        expected = model(images())
        assert torch.allclose(folded(model, images())(images()), expected, rtol=0, atol=1e-5)


def test_the_model_itself_is_not_changed_and_not_copied_where_nothing_can_be_folded():
    model = settled(Plain())
    before = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    folded(model, images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    assert folded(linear, images()) is linear


def test_the_copy_is_made_once_and_again_when_the_weights_change():
    model = settled(Plain())
    first = folded(model, images())
    assert folded(model, images()) is first
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    second = folded(model, images())
    assert second is not first
    assert not norms(second)  # made anew, not given up
    model[0].weight.data = model[0].weight.data * 2  # autograd's version counter does not see this
    third = folded(model, images())
    with torch.no_grad():
        assert torch.allclose(third(images()), model(images()), rtol=0, atol=1e-5)


def test_a_change_that_nothing_gives_away_is_found_by_comparing_answers():
    model = settled(Plain())
    folded(model, images())
    for _ in range(3):
        before = folded(model, images())
        model[0].weight.data.mul_(2)
        after = folded(model, images())
        assert after is not before
        assert not norms(after)  # made anew, not given up
        with torch.no_grad():
            assert torch.allclose(after(images()), model(images()), rtol=0, atol=1e-5 * float(model(images()).max()))
        assert folded(model, images()) is after


def test_a_copy_that_disagrees_from_the_beginning_is_made_once_and_then_given_up(monkeypatch):
    model, made = nn.Sequential(settled(Plain()), Jitter()).eval(), []
    fold = folding._fold
    monkeypatch.setattr(folding, "_fold", lambda *given: made.append(0) or fold(*given))
    for _ in range(3):
        assert folded(model, images()) is model
    assert len(made) == 1
    with torch.no_grad():
        model[0][0].weight.mul_(2)
    assert folded(model, images()) is model
    assert len(made) == 2


def test_an_attack_on_the_copy_finds_what_one_on_the_model_finds():
    model, image = Plain().centred(), images(32)
    label = model(image).argmax(1)
    attack = PGD(epsilon="2/255", steps=10, objective=CrossEntropy())
    exact = GradientAttack(**{**vars(attack), "engine": Engine(fold=False)})
    with torch.no_grad():
        results = [model(a(model, image, label)).argmax(1) == label for a in (attack, exact)]
    assert (results[0] != results[1]).sum() <= 1
    assert 0 < results[0].sum() < 32
    assert norms(model)
    assert isinstance(attack.threat, Linf)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_copy_that_answers_otherwise_is_not_believed_however_small_the_logits_are(scale):
    model = settled(Plain())
    with torch.no_grad():
        model[-1].weight.mul_(scale)
        model[-1].bias.mul_(scale)
    assert not norms(folded(model, images()))
    model[0].weight.data.mul_(2)  # which the copy, with its own fused weights, does not see
    copy_, inputs = folded(model, images()), images()
    with torch.no_grad():
        own, theirs = model(inputs), copy_(inputs)
    assert (own - theirs).abs().max() <= 1e-4 * (own.max() - own.min())


class Owned(Plain):
    """Refers to itself in a round-about way, as a Lightning module does through its trainer."""

    def __init__(self):
        super().__init__()
        self.trainer = {"module": [self]}


def test_an_attacked_module_that_refers_to_itself_is_freed():
    model = settled(Owned())
    assert folded(model, images()) is not model
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_copies_and_pickles_of_an_attacked_model_do_not_carry_the_folded_one():
    model = settled(Plain())
    plain = len(pickle.dumps(model))
    first = folded(model, images())
    assert len(pickle.dumps(model)) < plain + 200
    twin = copy.deepcopy(model)
    assert folded(twin, images()) is not first
    assert not any(first is value for value in vars(twin).values())


def test_trying_a_copy_leaves_the_callers_random_numbers_alone():
    model = nn.Sequential(settled(Plain()), Jitter()).eval()
    image, before = images(), torch.get_rng_state()
    with Engine().running(model, image):
        pass
    assert torch.equal(torch.get_rng_state(), before)


class Jitter(nn.Module):
    def forward(self, feature):
        return feature + torch.rand_like(feature)


def test_one_step_attacks_search_on_the_folded_copy_as_well(monkeypatch):
    model, asked = settled(Plain()), []
    forward = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda norm, feature: asked.append(0) or forward(norm, feature))
    FGSM(epsilon=0.1)(model, images(), torch.zeros(len(images()), dtype=torch.int64))
    trial = len(asked)
    FGSM(epsilon=0.1)(model, images(), torch.zeros(len(images()), dtype=torch.int64))
    agreement = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(asked) - trial == agreement


class Tied(Plain):
    """Two logits that differ by a hundred times what the image's mean is above a half: equal on one of mean grey."""

    def forward(self, image):
        logit = super().forward(image).square().sum(1, keepdim=True)
        return torch.cat([logit, logit + 100 * (image.mean((1, 2, 3)) - 0.5)[:, None]], 1)


def test_narrow_convolutions_work_in_the_usual_layout_and_the_others_in_channels_last():
    model = settled(timm.create_model("resnet18", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]), size=64)
    copy_, layouts = folded(model, images(size=64)), {}
    assert all(not module._forward_pre_hooks for module in model.modules())

    def seen(module, inputs, output):
        narrow = output.shape[-1] <= layout.NARROW
        format_ = torch.contiguous_format if narrow else torch.channels_last
        all_ = (tensor.is_contiguous(memory_format=format_) for tensor in (inputs[0], module.weight, output))
        layouts.setdefault(narrow, set()).add(tuple(all_))

    for module in copy_.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(seen)
    copy_(images(size=64))
    assert layouts == {True: {(True, True, True)}, False: {(True, True, True)}}


def test_a_copy_is_not_thrown_away_for_one_image_whose_logits_are_nearly_equal():
    model, grey = settled(Tied()), images(1)
    grey = 0.5 + 0.9 * (grey - grey.mean())
    copy_ = folded(model, torch.ones(4, 3, 16, 16))
    copy_[0].bias.data += 1e-6  # a rounding error on every machine
    with torch.no_grad():
        error, spread = (model(grey) - copy_(grey)).abs().max(), model(grey).max() - model(grey).min()
    assert error > 1e-4 * spread
    assert folded(model, grey) is copy_


class Uneven(Plain):
    """A copy answers otherwise where the image is bright: it has fewer batch norms."""

    def forward(self, image):
        return super().forward(image) + (image.mean((1, 2, 3)) > 0.5)[:, None] * len(norms(self))


def test_whether_a_copy_is_believed_does_not_depend_on_who_is_attacked():
    image, believed = images(16), set()
    for one in image.split(1):
        with Engine().running(settled(Uneven()), one) as run:
            believed.add(run.itself is not None)
    assert len(believed) == 1
    assert 0 < (image.mean((1, 2, 3)) > 0.5).sum() < 16
