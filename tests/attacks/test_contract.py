"""What attacks refuse to be handed, and what a model may answer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import INDEX, Net, images
from torch import nn

from robustfg.attacks import (
    APGD,
    FAB,
    PGD,
    Cascade,
    Engine,
    GradientAttack,
    Linf,
    Spatial,
    Square,
    Transfer,
    UniversalPerturbation,
)
from robustfg.attacks.composed.universal import fit
from robustfg.attacks.runtime.validation import checked, classes_of
from robustfg.core.errors import UserError
from robustfg.core.types import Output

BALL = Linf(epsilon=0.1)
LABEL = torch.tensor([0, 1, 2, 3, 4, 0])


def suite(engine):
    pgd = GradientAttack(threat=BALL, steps=3, engine=engine)
    return {
        "pgd": pgd,
        "apgd": APGD(threat=BALL, steps=3, engine=engine),
        "fab": FAB(threat=BALL, steps=3, engine=engine),
        "square": Square(threat=BALL, queries=5, engine=engine),
        "spatial": Spatial(tries=2, engine=engine),
        "universal": UniversalPerturbation(threat=BALL, perturbation=torch.zeros(1, 3, 4, 4), engine=engine),
        "cascade": Cascade(attacks={"a": pgd}),
        "transfer": Transfer(attack=pgd, surrogate=Net(), surrogate_name="net"),
    }


ATTACKS = pytest.mark.parametrize("name", list(suite(Engine())))


@ATTACKS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": lambda x: x.half()}, r"images must be float32 or float64, got torch.float16; .*engine.autocast"),
        ({"image": lambda x: x.bfloat16()}, "images must be float32 or float64, got torch.bfloat16"),
        (
            {"image": lambda x: (255 * x).to(torch.uint8)},
            "images must be float.*, got torch.uint8; take images / 255",
        ),
        ({"image": lambda x: 255 * x}, r"images must lie in \[0, 1\]"),
        ({"image": lambda x: x * torch.nan}, r"images must lie in \[0, 1\]"),
        ({"label": lambda y: y - 1}, "labels must be classes from 0, got -1"),
        ({"label": lambda y: y + 1}, "labels must be classes 0 to 4 of the model, got 5"),
        ({"label": lambda y: y.float()}, "labels must be int64, got torch.float32"),
        ({"label": lambda y: y.int()}, "labels must be int64, got torch.int32"),
        ({"label": lambda y: y.to("meta")}, "labels must lie on the images' device cpu, got meta"),
        ({"index": lambda i: i.float()}, "sample ids must be int64, got torch.float32"),
        ({"label": lambda y: y.numpy()}, r"labels must be a torch.Tensor, got numpy.ndarray; such as torch.as_tensor"),
        ({"label": lambda y: y.tolist()}, "labels must be a torch.Tensor, got list; such as"),
        ({"label": lambda y: y[0]}, "a single label needs a batch dimension"),
        ({"label": lambda y: torch.eye(5)[y]}, r"not one-hot rows: labels.argmax\(1\)"),
        ({"image": lambda x: x.numpy()}, "images must be a torch.Tensor, got numpy.ndarray"),
        ({"image": lambda x: list(x)}, "images must be a torch.Tensor, got list"),
        ({"image": lambda x: x[0]}, r"a single image needs a batch dimension: image\[None\]"),
        ({"image": lambda x: torch.rand(6, 8, 8, 3)}, r"take images.permute\(0, 3, 1, 2\)"),
        ({"image": lambda x: x + (1.0000001 - x.max())}, r"got \[0.\d+, 1.00000\d+\]"),
        ({"index": lambda i: i[:5]}, r"one sample id per image, got \(5,\)"),
    ],
)
def test_samples_that_cannot_be_attacked_are_refused_by_name(name, change, message):
    handed = {"image": images(), "label": LABEL, "index": INDEX}
    for what, spoil in change.items():
        handed[what] = spoil(handed[what])
    with pytest.raises(UserError, match=message):
        suite(Engine())[name](Net(), **handed)


class Answering(nn.Module):
    """A net with a batch norm, so that it is folded, whose answer is changed."""

    def __init__(self, change):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
        self.change = change
        self.double().eval()

    def forward(self, image):
        return self.change(self.body(image))


ANSWERS = pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, logits), "must return logits .B, K. or an Output that holds them, got tuple"),
        (lambda logits: {"logits": logits}, "must return logits .B, K. or an Output that holds them, got dict"),
        (lambda logits: logits[:, 0], r"got torch.b?float\d+ \(\d,\) for \d images"),
        (lambda logits: logits[:, :1], r"two classes or more, got torch.b?float\d+ \(\d, 1\) for \d images"),
        (lambda logits: logits[:, :, None, None], r"got torch.b?float\d+ \(\d, 5, 1, 1\) for \d images"),
        (lambda logits: logits[:1], r"got torch.b?float\d+ \(1, 5\) for \d images"),
        (lambda logits: logits.argmax(1, keepdim=True).expand(-1, 5), "got torch.int64"),
        (lambda logits: Output(logits=logits[:, 0], embedding=logits), r"got torch.b?float\d+ \(\d,\)"),
        (lambda logits: logits[:, :3], "labels must be classes 0 to 2 of the model, got 4"),
    ],
)


@ATTACKS
@ANSWERS
def test_answers_that_are_no_logits_are_refused_by_every_attack(name, change, message):
    with pytest.raises(UserError, match=message):
        suite(Engine())[name](Answering(change), images(), LABEL, INDEX)


@ANSWERS
@pytest.mark.parametrize(
    "engine", [Engine(fold=False), Engine(fixed_batch=2), Engine(fixed_batch=4, autocast="bfloat16")], ids=str
)
def test_answers_that_are_no_logits_are_refused_by_every_engine(engine, change, message):
    with pytest.raises(UserError, match=message):
        suite(engine)["pgd"](Answering(change), images(), LABEL, INDEX)


def test_known_logits_are_checked_like_the_models_own():
    attack = suite(Engine())["apgd"]
    for logits, message in {torch.zeros(6, 3): "classes 0 to 2", torch.zeros(5, 5): r"\(5, 5\) for 6 images"}.items():
        with pytest.raises(UserError, match=message):
            next(attack.attempts(Net(), images(), LABEL, INDEX, logits=logits))


def test_a_check_of_an_answer_reads_no_values_so_that_no_step_waits_for_the_device():
    logits = torch.empty(6, 5, device="meta")
    assert checked(logits, 6, 5) is logits
    with pytest.raises(UserError, match="classes 0 to 4 of the model, got 5"):
        checked(logits, 6, 6)


def test_the_number_of_classes_that_samples_ask_for_is_told():
    assert classes_of(images(), LABEL) == 5
    assert classes_of(images()[:2], LABEL[:2]) == 2
    assert classes_of(images()[:0], LABEL[:0]) == 0


def test_a_broken_budget_is_an_error_also_where_python_drops_assertions():
    script = (
        "import torch\nfrom robustfg.attacks import Linf, Patch\n"
        "from robustfg.attacks.threats.base import ThreatError\n"
        "clean = torch.full((1, 3, 4, 4), 0.5)\ncorner = clean.clone()\ncorner[0, 0, 3, 3] = 1\n"
        "patch = Patch(epsilon=0.25, place=(0, 0))\n"
        "for threat, far in (Linf(epsilon=0.1), clean + 0.2), (Linf(epsilon=1), clean + 0.6), (patch, corner):\n"
        "    try:\n        threat.check(far, clean)\n    except ThreatError as error:\n        print(error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-O", "-c", script], capture_output=True, text=True, check=True, cwd=root)
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert "linf size" in told[0]
    assert told[1:] == ["adversarial image outside [0, 1]", "a pixel outside the patch changed"]


# --- A universal perturbation


def test_learning_a_universal_perturbation_refuses_what_an_attack_refuses():
    learn = lambda image, label: fit(Net(), [(image, label)], threat=BALL, epochs=1)  # noqa: E731
    assert learn(images(), LABEL).abs().max() <= 0.1
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\]"):
        learn(images() * 255, LABEL)
    with pytest.raises(UserError, match="labels must be classes 0 to 4 of the model, got 5"):
        learn(images(), LABEL + 1)
    with pytest.raises(UserError, match="images must be float.*, got torch.uint8; take images / 255"):
        learn((images() * 255).to(torch.uint8), LABEL)


def test_batches_that_can_be_gone_through_once_serve_one_epoch_and_no_more():
    batches = [(images(), LABEL), (images(seed=1), LABEL)]
    once = fit(Net(), iter(batches), threat=BALL, epochs=1)
    assert torch.equal(once, fit(Net(), batches, threat=BALL, epochs=1))
    for single in (iter(batches), (batch for batch in batches)):
        with pytest.raises(UserError, match="batches can be gone through only once: give a list or a loader"):
            fit(Net(), single, threat=BALL, epochs=2)


class UsedUp:
    """Batches whose second round is empty, as those of a loader around a stream."""

    def __init__(self, batches):
        self.stream = iter(batches)

    def __iter__(self):
        yield from self.stream


def test_an_epoch_without_images_is_told():
    with pytest.raises(UserError, match="batches held no images in epoch 1"):
        fit(Net(), UsedUp([(images(), LABEL)]), threat=BALL, epochs=2)


class Shy(nn.Module):
    """Has no answer to images that are not made of whole grey levels."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, image):
        off = ((image * 255).round() - image * 255).abs().flatten(1).amax(1) > 1e-6
        return torch.where(off[:, None], torch.nan, self.net(image))


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square"])
def test_an_image_to_which_a_model_has_no_answer_is_found_not_passed_over(name):
    model, clean = Shy(), (images() * 255).round() / 255
    label = model(clean).argmax(1)
    *_, attempt = suite(Engine())[name].attempts(model, clean, label, INDEX)
    assert model(attempt.image).isnan().all()
    assert (attempt.margin < 0).all()
    assert (attempt.first_success >= 0).all()


def test_a_model_is_asked_once_whether_it_always_answers_alike():
    net, calls = Net(), []
    model = lambda image: calls.append(len(image)) or net(image)  # noqa: E731
    attack, counts = PGD(epsilon=0.1, steps=3), []
    for _ in range(3):
        calls.clear()
        attack(model, images(), LABEL, INDEX)
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2]
