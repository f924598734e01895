"""Models that others bring: attacked as plain PGD on the model itself attacks them, and given back without a trace."""

import functools
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from test_folding import Plain, images
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from robustfg.attacks import (
    APGD,
    FAB,
    FMN,
    L2,
    PGD,
    CrossEntropy,
    DifferenceOfLogitsRatio,
    Engine,
    KullbackLeibler,
    Linf,
    Margin,
    ScaledCrossEntropy,
    Square,
    TargetedDLR,
    TopClasses,
)
from robustfg.attacks.runtime.validation import steady
from robustfg.core.errors import UserError
from robustfg.core.types import Batch, Output, decision_margin
from robustfg.evaluation.checks.probes import finite_difference
from robustfg.evaluation.measure import verdicts

pytestmark = pytest.mark.numeric

EPSILON, STEPS = 3 / 255, 8
COUNT = 24


MADE = []
"""All networks of a test, wherever they are hidden."""


@pytest.fixture(autouse=True)
def nothing_made():
    MADE.clear()


def net():
    MADE.append(nn.Sequential(*Plain().centred()).eval())
    return MADE[-1]


NET = net()  # plain functions find it among their globals
STATE = {name: value.clone() for name, value in NET.state_dict().items()}


class TwoNorms(nn.Module):
    """The mean of a batch, or each image's own, decides which batch norm it goes through."""

    def __init__(self, each):
        super().__init__()
        self.body, self.each = net(), each
        self.other = nn.BatchNorm2d(8).eval()
        with torch.no_grad():
            self.other.running_mean += 0.3
            self.other.weight *= -1

    def forward(self, image):
        if self.each:
            return torch.cat([self.passed(one, one.mean() > 0.5) for one in image.split(1)])
        bright = image.mean((1, 2, 3)) > 0.5
        answer = image.new_zeros(len(image), 5)
        for side in (True, False):
            rows = (bright == side).nonzero().flatten()
            if len(rows):
                answer = answer.index_copy(0, rows, self.passed(image[rows], side))
        return answer

    def passed(self, image, bright):
        feature = self.body[0](image)
        return self.body[2:]((self.other if bright else self.body[1])(feature))


class ByFirst(TwoNorms):
    """Whether there are bright images decides for all: only a search that leaves the dark ones meets the other norm."""

    def __init__(self):
        super().__init__(False)

    def forward(self, image):
        return self.passed(image, bool(image.mean((1, 2, 3)).amax() > 0.5))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        return self.net(image.sub_(0.1).div_(0.9))


class Inference(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.net, self.mode = net(), mode

    def forward(self, image):
        with self.mode():
            return self.net(image)


class Listed(nn.Module):
    """An ensemble whose members nobody sees."""

    def __init__(self):
        super().__init__()
        self.nets = [net().train(), net().train()]

    def forward(self, image):
        return sum(member(image) for member in self.nets) / 2


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.seen = net(), None

    def forward(self, image):
        self.seen = self.net[:3](image)
        return self.net[3:](self.seen)


class Uncopied(Plain):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")

    def __reduce_ex__(self, protocol):
        raise RuntimeError("no pickles")


class Masked(nn.Module):
    """Leaves two classes out."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        return self.net(image).masked_fill(torch.tensor([False, False, False, True, True]), -torch.inf)


class Inside(nn.Module):
    """Looks at its own gradient."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        with torch.enable_grad():
            leaf = image if image.requires_grad else image.detach().requires_grad_()
            value = self.net(leaf)
            (slope,) = torch.autograd.grad(value.square().sum(), leaf, create_graph=True)
        return value + 0.01 * slope.mean((1, 2, 3))[:, None] * torch.arange(5)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = net(), scale

    def forward(self, image):
        return self.net(image) * self.scale


class Buffered(nn.Module):
    """Answers in one tensor every time, of another layout and type, and spoils the one before where it cannot."""

    def __init__(self):
        super().__init__()
        self.net, self.answer, self.last = net(), torch.zeros(5, 64, dtype=torch.float64), None

    def forward(self, image):
        if self.last is not None:
            self.last.detach().zero_()
        logits = self.net(image)
        if not logits.requires_grad:
            self.answer[:, : len(image)] = logits.T
            return self.answer[:, : len(image)].T
        self.last = logits
        return logits.double()


class Particular(nn.Module):
    """Answers wrongly to images in another layout, of another type, or that have been written over."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        usual = image.is_contiguous() and image._version == 0 and image.dtype == torch.float32
        return self.net(image).roll(0 if usual else 1, 1)


class Evasive(nn.Module):
    """Has a ``__call__`` of its own, the attributes of its net, and a part that is checkpointed."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def __getattr__(self, name):
        own = name.startswith("_") or name in ("net", "training")
        return super().__getattr__(name) if own else getattr(super().__getattr__("net"), name)

    def __call__(self, image):
        return checkpoint(self.net, image, use_reentrant=False) * 2

    def forward(self, image):
        raise AssertionError


class Parametrised(nn.Module):
    """Its weights are made in every pass, and two convolutions share theirs."""

    def __init__(self):
        super().__init__()
        self.net, self.norm = net(), nn.BatchNorm2d(3).eval()
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.one.weight
        parametrizations.weight_norm(self.net[0])
        parametrizations.spectral_norm(self.net[-1])

    def forward(self, image):
        return self.net(image + 0.3 * self.norm(self.other(self.one(image))))


def hooked():
    model = net()
    model[2].register_forward_hook(lambda module, inputs, output: output * 0.7)
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.9,))
    return model


def hidden(kind):
    model = net().train()
    if kind == "bound":
        return model.forward
    if kind == "lambda":
        return lambda image: model(image)
    if kind == "partial":
        return functools.partial(lambda scale, image: scale * model.forward(image), 2.0)
    return Object(model)


class Object:
    def __init__(self, model):
        self.model = {"net": [model]}

    def __call__(self, image):
        return self.model["net"][0](image)


def exported():
    shape = {0: torch.export.Dim("batch", min=1, max=64)}
    return torch.export.export(net(), (images(2),), dynamic_shapes=(shape,)).module()


MODELS = {
    "plain": net,
    "two norms by image": lambda: TwoNorms(True),
    "two norms by part": lambda: TwoNorms(False),
    "traced by fx": lambda: torch.fx.symbolic_trace(net()),
    "a traced part": lambda: nn.Sequential(torch.fx.symbolic_trace(net()[:3]).eval(), net()[3:]).eval(),
    "exported": exported,
    "scripted": lambda: torch.jit.script(net()),
    "frozen script": lambda: torch.jit.freeze(torch.jit.script(net())),
    "traced": lambda: torch.jit.trace(net(), images(2)),
    "compiled": lambda: torch.compile(net(), backend="eager"),
    "in place": InPlace,
    "bound": lambda: hidden("bound"),
    "lambda": lambda: hidden("lambda"),
    "partial": lambda: hidden("partial"),
    "object": lambda: hidden("object"),
    "global": lambda: lambda image: NET(image),
    "functional": lambda: lambda image: torch.func.functional_call(NET, STATE, (image,)),
    "listed": Listed,
    "parallel": lambda: nn.DataParallel(net()),
    "hooked": hooked,
    "remembers": Remembers,
    "uncopied": lambda: Uncopied().centred(),
    "masked": Masked,
    "inside": Inside,
    "buffered": Buffered,
    "particular": Particular,
    "evasive": Evasive,
    "parametrised": lambda: Parametrised().eval(),
    "large": lambda: Scaled(1e30),
    "small": lambda: Scaled(1e-30),
}
ATTACKS = {
    "pgd": PGD(epsilon=EPSILON, steps=STEPS, random_start=False, objective=Margin()),
    "last iterate": PGD(epsilon=EPSILON, steps=STEPS, random_start=False, objective=Margin(), last_iterate=True),
    "apgd": APGD(threat=Linf(epsilon=EPSILON), steps=STEPS),
    "fmn": FMN(threat=L2(epsilon=0.2), steps=10),
    "fab": FAB(threat=Linf(epsilon=EPSILON), steps=5),
    "square": Square(threat=Linf(epsilon=EPSILON), queries=20),
}


@contextmanager
def calm():
    """All networks in eval mode, as an attack must meet them."""
    modes = [(part, part.training) for made in MADE for part in made.modules()]
    for part, _ in modes:
        part.training = False
    yield
    for part, mode in modes:
        part.training = mode


def predicted(model, image):
    with calm(), torch.no_grad():
        return model(image.clone()).argmax(1)


def naive(model, image, label):
    """Plain PGD on the model itself, the worst image kept."""
    current, best, least = image, image, torch.full((len(image),), torch.inf)
    for step in range(STEPS + 1):
        leaf = current.clone().requires_grad_()
        margin = decision_margin(model(leaf.clone()), label)
        better = (margin < least) & ~(least < 0)
        best = torch.where(better[:, None, None, None], current, best)
        least = torch.where(better, margin.detach().float(), least)
        if step < STEPS:
            (gradient,) = torch.autograd.grad(-margin.sum(), leaf)
            current = current + EPSILON / 4 * gradient.sign()
            current = torch.clamp(current, image - EPSILON, image + EPSILON).clamp(0, 1)
    return least < 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:.*_LeafSpec.*")
@pytest.mark.parametrize("name", MODELS)
def test_strange_models_are_broken_as_plain_pgd_breaks_them(name):
    torch.manual_seed(0)
    model, image = MODELS[name](), images(COUNT, seed=3)
    kept, label = image.clone(), predicted(model, image)
    with calm():
        expected = naive(model, image, label)
    held = dict(vars(model)) if isinstance(model, nn.Module) else {}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "compiled" else "error", UserWarning)
        for attack, made in ATTACKS.items():
            (found[attack],) = made.attempts(model, image, label)
            assert torch.equal(image, kept)
    for attribute, value in held.items():
        assert vars(model)[attribute] is value or attribute in ("seen", "last"), attribute
    assert held.keys() == vars(model).keys() if held else True
    for attack, attempt in found.items():
        fooled = predicted(model, attempt.image) != label
        if attack != "last iterate":
            looked = ~attempt.margin.isnan()
            assert torch.equal(fooled[looked], attempt.margin[looked] < 0), attack
        if attack == "pgd":
            assert 0 < expected.sum() < COUNT
            assert (fooled != expected).sum() <= 1
        if attack in ("last iterate", "apgd", "fab"):
            assert fooled.sum() >= expected.sum() - 3, attack


def test_a_copy_that_takes_another_way_than_the_model_is_given_up_and_the_samples_are_tried_again():
    model, image = ByFirst().eval(), images(COUNT, seed=3)
    image = (image * torch.linspace(0.9, 1.1, COUNT)[:, None, None, None]).clamp(0, 1)
    for one in (image, image[:4], image[-4:]):
        with torch.no_grad():
            label = model(one).argmax(1)
        (attempt,) = ATTACKS["apgd"].attempts(model, one, label)
        alone = torch.cat([model(picture[None]).argmax(1) for picture in attempt.image])
        if len(one) == 4:  # all on one side: no path changes with the company
            assert torch.equal(attempt.margin < 0, alone != label)


@pytest.mark.parametrize("attack", ["pgd", "last iterate", "apgd"])
def test_samples_that_a_copy_misjudges_are_attacked_on_the_model_itself_from_the_start(attack, monkeypatch):
    model, image = net(), images(COUNT, seed=3)
    label, made = model(image).argmax(1), ATTACKS[attack]
    (expected,) = replace(made, engine=Engine(fold=False)).attempts(model, image, label)
    bright = image.mean((1, 2, 3)).sort().values[COUNT // 2]

    def misled(picture):  # sees no slope on brighter images, and is sure of what the label is
        own, there = model(picture), (picture.mean((1, 2, 3)) >= bright)[:, None]
        return torch.where(there, (own * 5).detach(), own)

    monkeypatch.setattr("robustfg.attacks.runtime.engine.folded", lambda model, image: (model(image), misled))
    (found,) = made.attempts(model, image, label)
    assert torch.equal(model(found.image).argmax(1) != label, model(expected.image).argmax(1) != label)
    again = found.forwards > expected.forwards + 2
    assert again.any()
    moved = (found.image - expected.image)[again].abs() > 1e-5
    assert moved.float().mean() < 0.01  # signs of slopes that round to the other side of 0 in a smaller batch


def test_weights_that_change_between_calls_are_those_attacked():
    model, image = net(), images(COUNT, seed=3)
    for _ in range(2):
        label = model(image).argmax(1)
        expected = naive(model, image, label)
        (attempt,) = ATTACKS["pgd"].attempts(model, image, label)
        assert ((attempt.margin < 0) != expected).sum() <= 1
        assert torch.equal(model(attempt.image).argmax(1) != label, attempt.margin < 0)
        for parameter in model.parameters():
            parameter.data.mul_(1.05)


@pytest.mark.parametrize("name", ["bound", "lambda", "partial", "object", "listed"])
def test_hidden_batch_norms_in_train_mode_are_switched_and_given_back(name):
    model, image = MODELS[name](), images(COUNT, seed=3)
    norms = [part for made in MADE for part in made.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    assert norms
    before = [part.running_mean.clone() for part in norms]
    ATTACKS["pgd"](model, image, torch.zeros(COUNT, dtype=torch.int64))
    assert all(torch.equal(part.running_mean, mean) for part, mean in zip(norms, before, strict=True))
    assert all(part.training for part in norms)


class Tracking(nn.Module):
    """Updates its statistics whatever its mode."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, image):
        norm = self.net[1]
        feature = nn.functional.batch_norm(self.net[0](image), norm.running_mean, norm.running_var, training=True)
        return self.net[2:](feature)


def test_statistics_that_change_in_eval_mode_are_put_back_and_told():
    model = Tracking().eval()
    before = model.net[1].running_mean.clone()
    with pytest.warns(UserWarning, match="changes its buffers in eval mode"):
        ATTACKS["pgd"](model, images(COUNT), torch.zeros(COUNT, dtype=torch.int64))
    assert torch.equal(model.net[1].running_mean, before)


def test_nothing_but_torch_is_needed_to_load_a_model_that_was_attacked(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)).eval()
    alive, size = weakref.ref(model), len(pickle.dumps(model))
    for attack in ATTACKS.values():
        attack(model, images(4), torch.zeros(4, dtype=torch.int64))
    assert len(pickle.dumps(model)) == size
    torch.save(model, tmp_path / "model.pt")
    code = "import sys, torch; sys.modules['robustfg'] = None; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)
    del model, attack
    gc.collect()
    assert alive() is None


class Says(nn.Module):
    """Answers with what a change makes of a net's logits."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, image):
        return self.change(self.net(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.detach, "first gradient of 24 of 24 images is zero"),
        (lambda logits: logits.round(), "first gradient of 24 of 24 images is zero"),
        (lambda logits: torch.zeros_like(logits) * logits, "first gradient of 24 of 24 images is zero"),
        (lambda logits: logits.softmax(1), "seems to return probabilities"),
        (lambda logits: logits.index_fill(0, torch.tensor([1]), torch.nan), "logits of 1 of 24 images are NaN"),
        (lambda logits: logits.masked_fill(torch.arange(5) > 0, -torch.inf), "no wrong class has a finite logit"),
    ],
)
@pytest.mark.parametrize("engine", [Engine(), Engine(fold=False)], ids=["copy", "no copy"])
@pytest.mark.parametrize("attack", ["pgd", "last iterate", "apgd"])
def test_what_makes_an_attack_prove_little_is_told_once_a_call(change, message, attack, engine):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = replace(ATTACKS[attack], engine=engine)
        made(Says(change).eval(), images(COUNT), torch.zeros(COUNT, dtype=torch.int64))
    if attack == "last iterate" and "no wrong class" in message:
        return  # nobody looks
    assert sum(message in str(warning.message) for warning in told) == 1
    assert all("\n" not in str(warning.message) for warning in told)


class Moody(nn.Module):
    """Answers by something that is not in the image."""

    def __init__(self, mood):
        super().__init__()
        self.net, self.mood, self.calls = net(), mood, 0

    def forward(self, image):
        self.calls += 1
        return self.net(image).roll(int(self.mood(self, image)), 1)


MOODS = {
    "grad mode": lambda model, image: torch.is_grad_enabled(),
    "requires grad": lambda model, image: image.requires_grad,
    "size of the batch": lambda model, image: len(image) % 2,
    "company": lambda model, image: image[0].mean() < 0.5,
    "calls": lambda model, image: model.calls % 2,
    "random": lambda model, image: torch.rand(()) < 0.5,
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_model_that_does_not_always_answer_alike_is_told(mood):
    model, image = Moody(MOODS[mood]).eval(), images(COUNT, seed=3).sort(0).values
    with pytest.warns(UserWarning, match="differ when it is asked again, beside other images or with gradients"):
        ATTACKS["pgd"](model, image, model(image).argmax(1))
    agree = steady(model, image)
    assert mood == "random" or not agree.all()


def test_answers_that_agree_but_for_rounding_are_steady():
    image = images(COUNT, seed=3)
    for model in (net(), Says(lambda logits: logits.log_softmax(1)), Masked(), Scaled(1e30), Scaled(1e-30)):
        assert steady(model.eval(), image).all()
    assert steady(Says(lambda logits: logits * torch.nan), image).all(), "reported elsewhere"


def test_a_checkpoint_without_gradients_is_refused_in_one_line_and_a_hook_that_raises_leaves_no_trace():
    reentrant = Says(lambda logits: logits)
    reentrant.forward = lambda image: checkpoint(reentrant.net, image, use_reentrant=True)
    with pytest.raises(UserError, match="use_reentrant=False"):
        ATTACKS["apgd"](reentrant.eval(), images(4), torch.zeros(4, dtype=torch.int64))
    model, calls = Says(lambda logits: logits).train(), []

    def raises(module, inputs, output):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no more")

    model.net[2].register_forward_hook(raises)
    for attack in ATTACKS.values():
        calls.clear()
        with pytest.raises(RuntimeError, match="no more"):
            attack(model, images(4), torch.zeros(4, dtype=torch.int64))
        assert all(part.training for part in (model, model.net))
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_pass_without_gradients_is_told_and_attacked_without_them(mode):
    model, image = Inference(mode).eval(), images(COUNT, seed=3)
    label = model(image).argmax(1)
    with pytest.warns(UserWarning, match="gradient of 24 of 24 images is zero"):
        ATTACKS["pgd"](model, image, label)
    for name in ("apgd", "fmn", "fab"):
        (attempt,) = ATTACKS[name].attempts(model, image, label)
        assert attempt.dead_gradient.all() or name == "fab"
    (attempt,) = replace(ATTACKS["square"], queries=100).attempts(model, image, label)
    assert torch.equal(model(attempt.image).argmax(1) != label, attempt.margin < 0)
    assert (attempt.margin < 0).any()


@pytest.mark.parametrize("answer", [lambda x: (x, x), lambda x: {"logits": x}, lambda x: [x], lambda x: None])
def test_other_answers_than_logits_are_refused_in_one_line(answer):
    with pytest.raises(UserError, match="the model must return logits") as refused:
        ATTACKS["pgd"](Says(answer).eval(), images(4), torch.zeros(4, dtype=torch.int64))
    assert "\n" not in str(refused.value)


def test_a_copy_that_fails_in_a_later_pass_does_not_end_the_attack(monkeypatch):
    model, image = net(), images(COUNT, seed=3)
    label = model(image).argmax(1)
    calls = io.StringIO()

    def fails(picture):
        calls.write("x")
        raise RuntimeError("no kernel")

    monkeypatch.setattr("robustfg.attacks.runtime.engine.folded", lambda model, image: (model(image), fails))
    (attempt,) = ATTACKS["pgd"].attempts(model, image, label)
    assert calls.getvalue() == "x"
    assert ((attempt.margin < 0) != naive(model, image, label)).sum() <= 1


class Judged(Masked):
    """As an evaluation sees a model that leaves classes out and writes over its input."""

    def forward(self, image):
        logits = super().forward(image.mul_(1.0).add_(0.1))
        return Output(logits=logits, embedding=logits[:, :3])

    def anomaly(self, output):
        return output.embedding.sum(1)


def test_an_evaluation_takes_classes_left_out_as_none_and_keeps_its_images():
    model, image = Judged().eval(), images(COUNT, seed=3) * 0.9
    kept, label = image.clone(), torch.zeros(COUNT, dtype=torch.int64)
    found = verdicts(model, image, label)
    assert torch.equal(image, kept)
    with torch.no_grad():
        expected = model(kept.clone()).logits[:, :3]
    assert torch.allclose(found["margin"], decision_margin(expected, label), atol=1e-5)
    assert torch.equal(found["prediction"], expected.argmax(1))
    assert not found["borderline"].all()
    batch = Batch(image, label, label)
    assert steady(model, image).all()
    assert finite_difference(model, batch).float().mean() > 0.5
    assert torch.equal(image, kept)


LOGITS = torch.tensor([[2.0, 1.0, -torch.inf, 0.5, -torch.inf], [1e30, -1e30, 0.0, 5e29, -torch.inf]])


@pytest.mark.parametrize("objective", [ScaledCrossEntropy(), DifferenceOfLogitsRatio(), Margin(), CrossEntropy()])
def test_classes_at_minus_infinity_are_no_classes_to_an_objective(objective):
    label, keep = torch.tensor([0, 0]), torch.tensor([0, 1, 3])
    whole, part = LOGITS[:1].requires_grad_(), LOGITS[:1, keep].requires_grad_()
    assert torch.allclose(objective(whole, label[:1]), objective(part, label[:1]))
    (slope,), (expected,) = (torch.autograd.grad(objective(x, label[:1]).sum(), x) for x in (whole, part))
    assert torch.allclose(slope[:, keep], expected)
    assert expected.abs().sum() > 0
    large = LOGITS.clone().requires_grad_()
    assert torch.autograd.grad(objective(large, label).sum(), large)[0].isfinite().all()


def test_a_divergence_from_an_answer_with_classes_left_out_is_that_of_the_others():
    clean, keep = LOGITS[:1].roll(1, 1), torch.tensor([1, 2, 4])
    moved = (clean + torch.arange(5.0) / 10).requires_grad_()
    assert torch.allclose(KullbackLeibler()(moved, clean), KullbackLeibler()(moved[:, keep], clean[:, keep]))
    assert torch.autograd.grad(KullbackLeibler()(moved, clean).sum(), moved)[0].isfinite().all()


def test_no_steps_are_taken_towards_a_class_that_is_left_out():
    model, image = Masked().eval(), images(COUNT, seed=3)
    label = model(image).argmax(1)
    attack = APGD(
        threat=Linf(epsilon=1 / 255), steps=5, objective=TargetedDLR(), targets=TopClasses(count=4), random_start=False
    )
    spent = [attempt.forwards for attempt in attack.attempts(model, image, label)]
    assert (spent[0] > 0).any()
    assert not (spent[2] > 0).any()
    assert not (spent[3] > 0).any()
