"""Every attack that conf/attack yields, shortened, and a small model with a batch norm to try it on."""

import functools
import importlib.util
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import nn

from robustfg.attacks import FeatureBank
from robustfg.cli.config import CONF, build, plain, register_schemas
from robustfg.core.types import Output

APART = {"quick", "accv2020_fr"}  # give names that others give, too
ASKED = ["attack.transfer.surrogate=run", "attack.features.bank.path=bank", "attack.universal.path=universal"]
SHORT = {
    "steps": 6, "queries": 40, "searches": 2, "targets": 2, "count": 2, "tries": 5, "samples": 4, "angles": 3,
    "shifts": 2, "first_queries": 10, "restarts": 2, "max_iter": 4, "n_iter": 4,
}  # fmt: skip
LIBRARIES = {"AdvLib": "adv_lib", "ART": "art", "Foolbox": "foolbox", "PyAutoAttack": "pyautoattack"}
SHORT_STAGES = {
    "square": {"n_queries": 10},
    "apgd": {"n_iter": 4},
    "apgd_targeted": {"n_iter": 3},
    "fab": {"n_iter": 3},
}


def shortened(node):
    if isinstance(node, dict):
        most = {key: SHORT[key] for key, value in node.items() if key in SHORT and type(value) is int}
        return {key: min(value, most[key]) if key in most else shortened(value) for key, value in node.items()}
    return [shortened(value) for value in node] if isinstance(node, list) else node


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("train", overrides=["run_name=r", "epsilon=8/255", *overrides]))["attack"]


@functools.cache
def nodes():
    """Every attack's node by its name, as the command line would compose them."""
    register_schemas()
    options = sorted({path.stem for path in (CONF / "attack").glob("*.yaml")} - APART)
    found = composed(f"attack=[{','.join(options)}]", *ASKED)
    for option in sorted(APART):
        theirs = composed(f"attack={option}")
        found |= {f"{option}/{name}": node for name, node in theirs.items() if found[name] != node}
    return {name: shortened(node) for name, node in found.items()}


def library(name):
    """The module that the attack needs besides ours, or None."""
    return LIBRARIES.get(nodes()[name]["_target_"].split(".")[-1])


def parameters(names):
    """The names as parameters of a test; those of libraries that are not installed are skipped."""
    missing = {
        name: pytest.mark.skip(reason=f"{library(name)} is not installed")
        for name in names
        if library(name) and importlib.util.find_spec(library(name)) is None
    }
    return [pytest.param(name, marks=missing.get(name, ())) for name in names]


EVERY = parameters(nodes())
OURS = parameters([name for name in nodes() if not library(name)])


@functools.cache
def preset(name, shape=(3, 16, 16), classes=6, dtype=torch.float32):
    """The attack for images ``(C, H, W)``; what it must be given besides its options is small and arbitrary."""
    node, generator = dict(nodes()[name]), torch.Generator().manual_seed(9)
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "given.pt")
        if name == "features":
            embedding, label = torch.randn(12, 32, generator=generator), torch.arange(12) % classes
            FeatureBank(embedding, label).write(path)
            node["bank"] = node["bank"] | {"path": path}
        if name == "universal":
            torch.save((torch.rand(1, *shape, generator=generator) - 0.5) / 16, path)
            node["path"] = path
        if name == "transfer":
            node |= {"surrogate": Tiny(shape[0], classes, seed=1).to(dtype), "surrogate_name": "another net"}
        if name == "pyautoattack":
            node["options"] = SHORT_STAGES
        attack = build(node, f"attack.{name}")
    return attack.told(lambda: torch.rand(classes, classes, generator=generator))


class Alarm:
    """Counts the forward passes of a model and of its folded copy, and interrupts one of them."""

    def __init__(self, rings=None):
        self.calls, self.rings = 0, rings

    def __call__(self):
        self.calls += 1
        if self.calls == self.rings:
            raise KeyboardInterrupt


class Tiny(nn.Module):
    """Answers with logits, embedding and another head.

    Args:
        channels: of the images.
        classes: logits.
        seed: of the weights.
        change: of the logits, given them and the images.
        alarm: hears every forward pass.
    """

    def __init__(self, channels=3, classes=6, *, seed=0, change=None, alarm=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 8, 3, 2, 1)
            self.norm = nn.BatchNorm2d(8)
            self.norm.running_mean.normal_(0, 0.1)
            self.norm.running_var.uniform_(0.5, 1.5)
            self.drop, self.linear = nn.Dropout(0.3), nn.Linear(32, classes)
        self.linear.weight.data *= 60
        self.change, self.alarm = None, Alarm()
        self.linear.bias.data -= self.eval()(images(64, channels)).logits.mean(0).detach()
        self.train()
        self.change, self.alarm = change, alarm or Alarm()

    def forward(self, image):
        self.alarm()
        maps = F.relu(self.norm(self.conv((image - 0.5) * 2)))
        embedding = F.adaptive_avg_pool2d(maps, 2).flatten(1)
        logits = self.linear(self.drop(embedding))
        logits = logits if self.change is None else self.change(logits, image)
        return Output(logits=logits, embedding=embedding, heads={"attention": 2 * logits})


def images(count=5, channels=3, height=16, width=16, dtype=torch.float32):
    """Noise around a colour of each image's own, so that some lie far from every boundary."""
    generator = torch.Generator().manual_seed(5)
    colour, noise = (torch.rand(count, channels, *size, generator=generator) for size in ((1, 1), (height, width)))
    return (0.6 * colour + 0.4 * noise).to(dtype)


def predicted(model, image):
    """Its own predictions in eval mode, which attacks are given as labels; modes and alarm stay as they are."""
    training, alarm, model.alarm = [module.training for module in model.modules()], model.alarm, Alarm()
    with torch.no_grad():
        label = model.eval()(image).logits.argmax(1)
    model.alarm = alarm
    for module, mode in zip(model.modules(), training, strict=True):
        module.training = mode
    return label


def spent(attack, model, image, label, index):
    """Image, forwards and backwards of every sample over all rounds."""
    passes = Counter()
    for attempt in attack.attempts(model, image, label, index):
        passes["forwards"] = passes["forwards"] + attempt.forwards
        passes["backwards"] = passes["backwards"] + attempt.backwards
    return attempt.image, passes["forwards"], passes["backwards"]
