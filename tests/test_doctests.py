"""The examples in the docstrings of the public classes run, and the public names are found."""

import doctest
import subprocess
import sys

import pytest
import torch

import robustfg
from robustfg import attacks, core, data
from robustfg.detectors import MaxLogit
from robustfg.losses import GaussianMixture

SHOWN = [
    attacks, attacks.APGD, attacks.Cascade, attacks.GradientAttack, attacks.Linf, attacks.PGD,
    data, GaussianMixture, MaxLogit, robustfg,
]  # fmt: skip


@pytest.mark.parametrize("thing", SHOWN, ids=lambda thing: thing.__name__)
def test_the_example_of_a_public_class_runs(thing):
    tests = doctest.DocTestFinder(recurse=False).find(thing, globs={})
    assert sum(len(test.examples) for test in tests) >= 2
    runner = doctest.DocTestRunner()
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_the_public_names_exist_and_are_found_by_tab():
    for package in (robustfg, attacks, core):
        assert dir(package) == sorted(package.__all__)
        assert all(getattr(package, name) is not None for name in package.__all__)
    assert 35 <= len(attacks.__all__) <= 45
    with pytest.raises(AttributeError, match="Bacth"):
        _ = robustfg.Bacth


def test_importing_the_package_and_an_error_class_loads_no_torch():
    code = "import sys, robustfg.core; robustfg.UserError; print('torch' in sys.modules, robustfg.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", robustfg.__version__]


def model(image):
    return image.mean((2, 3))


IMAGES, LABELS = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 1])
ATTACK = attacks.PGD(steps=1)
MISTAKES = {
    "PGD takes its options by name.*float, int": lambda: attacks.PGD(0.03, 40),
    r"PGD takes.*takes the model afterwards: PGD\(…\)\(model, images, labels\)": lambda: attacks.PGD(model),
    "APGD takes": lambda: attacks.APGD(attacks.Linf(epsilon=0.1)),
    "Linf takes": lambda: attacks.Linf("8/255"),
    "Engine takes": lambda: attacks.Engine(True),
    "Steepest takes": lambda: attacks.Steepest("eps/4"),
    "GaussianMixture takes": lambda: GaussianMixture(8, 3),
    "threat must be such as Linf": lambda: attacks.APGD(threat=0.03),
    "steps must be a whole number, got '40'": lambda: attacks.PGD(steps="40"),
    "steps must be a whole number, got 1.5": lambda: attacks.PGD(steps=1.5),
    "images must be a torch.Tensor, got numpy.ndarray": lambda: ATTACK(model, IMAGES.numpy(), LABELS.numpy()),
    "images must be a torch.Tensor, got list": lambda: ATTACK(model, list(IMAGES), LABELS),
    "labels must be a torch.Tensor, got list": lambda: ATTACK(model, IMAGES, [0, 1]),
    "images / 255": lambda: ATTACK(model, (IMAGES * 255).byte(), LABELS),
    "the model must be a module or function.*got str": lambda: ATTACK("resnet18", IMAGES, LABELS),
    "the model must be a module or function.*got ndarray": lambda: ATTACK(IMAGES.numpy(), IMAGES, LABELS),
    "need images": lambda: ATTACK(model, LABELS, IMAGES),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_arrays_lists_and_positional_mistakes_are_told_in_one_line(message):
    with pytest.raises(core.UserError, match=message) as caught:
        MISTAKES[message]()
    assert "\n" not in str(caught.value)


class Theirs(GaussianMixture):
    def __init__(self, channels, num_classes):
        super().__init__(channels=channels, num_classes=num_classes)


def test_a_subclass_may_take_options_by_position():
    assert Theirs(8, 3)(torch.rand(1, 8, 2, 2)).logits.shape == (1, 3)
