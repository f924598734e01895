import copy
import gc
import weakref

import pytest
import timm
import torch
from torch import nn

from robustfg.attacks import FGSM, PGD, CrossEntropy, Engine, GradientAttack, Linf
from robustfg.attacks.runtime.folding import folded
from robustfg.core import memory_layout as layout
from robustfg.models import Backbone

pytestmark = pytest.mark.numeric


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
        lambda: nn.Sequential(
            Backbone(name="resnet18", image_size=16, options={"channels": [8, 8, 16, 16]}), nn.Flatten()
        ),
    ],
    ids=["plain", "resnet", "efficientnet", "backbone"],
)
def test_the_copy_answers_alike_without_batch_norms_and_so_does_its_gradient(make):
    model = settled(make())
    answer, copy_ = folded(model, images())
    assert torch.equal(answer, model(images()))
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
    assert folded(settled(make()), images())[1] is None


def test_the_model_itself_is_not_changed_and_not_copied_where_nothing_can_be_folded():
    model = settled(Plain())
    before, held = copy.deepcopy(model.state_dict()), [dict(vars(module)) for module in model.modules()]
    modules = dict(model.named_modules())
    PGD(epsilon="2/255", steps=10)(model, images(), torch.zeros(8, dtype=torch.int64))
    assert [dict(vars(module)) for module in model.modules()] == held
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    assert folded(linear, images())[1] is None


def test_a_change_of_the_weights_that_nothing_gives_away_is_in_the_next_copy():
    model = settled(Plain())
    for _ in range(2):
        _, copy_ = folded(model, images())
        with torch.no_grad():
            torch.testing.assert_close(copy_(images()), model(images()), rtol=1e-4, atol=1e-4)
        model[0].weight.data.mul_(2)


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


class Owned(Plain):
    """Refers to itself in a round-about way, as a Lightning module does through its trainer."""

    def __init__(self):
        super().__init__()
        self.trainer = {"module": [self]}


def test_an_attacked_module_that_refers_to_itself_is_freed():
    model = settled(Owned())
    PGD(epsilon="2/255", steps=10)(model, images(), torch.zeros(8, dtype=torch.int64))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_trying_a_copy_leaves_the_callers_random_numbers_alone():
    model = nn.Sequential(settled(Plain()), Jitter()).eval()
    image, before = images(), torch.get_rng_state()
    with Engine().running(model, image) as run:
        run(image)
    assert torch.equal(torch.get_rng_state(), before)


class Jitter(nn.Module):
    def forward(self, feature):
        return feature + torch.rand_like(feature)


def test_attacks_of_few_passes_ask_the_model_itself(monkeypatch):
    monkeypatch.setattr("robustfg.attacks.runtime.engine.folded", lambda model, image: pytest.fail("a copy was made"))
    FGSM(epsilon=0.1)(settled(Plain()), images(), torch.zeros(8, dtype=torch.int64))


def test_narrow_convolutions_work_in_the_usual_layout_and_the_others_in_channels_last():
    model = settled(timm.create_model("resnet18", num_classes=5, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]), size=64)
    (_, copy_), layouts = folded(model, images(size=64)), {}
    assert all(not module._forward_pre_hooks for module in model.modules())

    def seen(module, inputs, output):
        narrow = output.shape[-1] <= layout.NARROW
        format_ = torch.contiguous_format if narrow else torch.channels_last
        all_ = (tensor.is_contiguous(memory_format=format_) for tensor in (inputs[0], module.weight, output))
        layouts.setdefault(narrow, set()).add(tuple(all_))

    for module in copy_.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(seen)
    copy_(images(size=64).contiguous(memory_format=torch.channels_last))
    assert layouts == {True: {(True, True, True)}, False: {(True, True, True)}}
