"""Our suites against pyautoattack's on trained classifiers: who breaks what, sample by sample, at what cost.

Run: python benchmarks/attack_strength.py CHECKPOINT [CHECKPOINT …] [--samples 128] [--pairs standard,apgd_ce,…]
Both sides get the same images, those that the classifier has right, in one process.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from robustfg.attacks import Attack
from robustfg.checkpoint import Checkpoint
from robustfg.classifier import Classifier
from robustfg.cli import assemble
from robustfg.cli.config import CONF, plain, register_schemas
from robustfg.data.splits import balanced_subset

PAIRS = ("standard", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")


@dataclass(frozen=True)
class Outcome:
    """What one side did to ``n`` images."""

    broken: Tensor
    forwards: float
    backwards: float
    seconds: float


class Counting(nn.Module):
    """Logits only, and how many images went forward and backward."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.forwards = self.backwards = 0

    def forward(self, image: Tensor) -> Tensor:
        self.forwards += len(image)
        logits: Tensor = self.classifier(image).logits
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def shipped(option: str, epsilon: str) -> Attack:
    """An option of conf/attack as ``attack=…`` builds it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["run_name=r", f"attack={option}", f"epsilon={epsilon}"])
    (attack,) = assemble.attacks_of(plain(config), ()).values()
    return attack


def ours(attack: Attack, classifier: Classifier, image: Tensor, label: Tensor, index: Tensor) -> Outcome:
    """Runs our side; success is judged on the classifier itself."""
    began, forwards, backwards = time.perf_counter(), 0, 0
    for attempt in attack.attempts(classifier, image, label, index):
        forwards, backwards = forwards + int(attempt.forwards.sum()), backwards + int(attempt.backwards.sum())
    seconds = time.perf_counter() - began
    return Outcome(_broken(classifier, attempt.image, label), forwards / len(label), backwards / len(label), seconds)


def theirs(option: str, epsilon: float, classifier: Classifier, image: Tensor, label: Tensor) -> Outcome:
    """Runs pyautoattack's side with its published settings."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    model = Counting(classifier).eval()
    shared = {"norm": "Linf", "n_restarts": 1, "eps": epsilon, "seed": 0, "device": str(image.device)}
    log = {"logger": logging.getLogger("auto-attack")}
    targets = min(9, classifier(image[:1]).logits.shape[1] - 1)

    def whole() -> Tensor:
        suite = AutoAttack(model, norm="Linf", eps=epsilon, seed=0, device=str(image.device))
        suite.verbose = False
        found: Tensor = suite.run_standard_evaluation(image, label, batch_size=len(label))[0]
        return found

    runs: dict[str, Callable[[], Tensor]] = {
        "standard": whole,
        "apgd_ce": lambda: APGDAttack(model, n_iter=100, loss="ce", **shared, **log).perturb(image, label),
        "apgd_dlr": lambda: APGDAttack(model, n_iter=100, loss="dlr", **shared, **log).perturb(image, label),
        "apgd_t": lambda: APGDAttack_targeted(model, n_iter=100, n_target_classes=targets, **shared, **log).perturb(
            image, label
        ),
        "fab_t": lambda: FABAttack_PT(
            model, n_iter=100, targeted=True, n_target_classes=targets, **shared
        ).perturb(image, label),
        "square": lambda: SquareAttack(model, n_queries=5000, p_init=0.8, resc_schedule=False, **shared).perturb(
            image, label
        ),
    }  # fmt: skip
    began = time.perf_counter()
    found = runs[option]()
    seconds = time.perf_counter() - began
    n = len(label)
    return Outcome(_broken(classifier, found, label), model.forwards / n, model.backwards / n, seconds)


@torch.no_grad()
def _broken(classifier: Classifier, image: Tensor, label: Tensor) -> Tensor:
    return classifier(image.clamp(0, 1)).logits.argmax(1) != label


def rightly_classified(path: Path, samples: int, device: str) -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """A checkpoint's classifier and a balanced part of its test split that it has right."""
    checkpoint = Checkpoint.read(path)
    data = assemble.data_of(checkpoint.config)
    classifier = assemble.classifier_of(checkpoint.config, checkpoint.classes)
    checkpoint.load_into(classifier)
    classifier = classifier.eval().to(device)
    split = data.samples("test")
    chosen = balanced_subset(torch.as_tensor(split.labels).numpy(), samples)
    image, label, index = (
        torch.stack(list(column)).to(device) for column in zip(*(split[i] for i in chosen), strict=True)
    )
    with torch.no_grad():
        right = classifier(image).logits.argmax(1) == label
    return classifier, image[right], label[right], index[right]


def main() -> None:
    """Prints one table a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--epsilon", default="8/255")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    register_schemas()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for path in options.checkpoints:
        classifier, image, label, index = rightly_classified(path, options.samples, device)
        print(f"\n{path}: {len(label)} images right when clean, l-inf {options.epsilon}, {device}")
        print(
            "| | broken by ours | by theirs | only theirs | forwards, ours / theirs | backwards | their time ÷ ours |"
        )
        print("|---|---|---|---|---|---|---|")
        for option in options.pairs.split(","):
            attack = shipped(option, options.epsilon)
            own = ours(attack, classifier, image, label, index)
            other = theirs(option, attack.threat.radius, classifier, image, label)
            missed = int((other.broken & ~own.broken).sum())
            print(
                f"| {option} | {int(own.broken.sum())} | {int(other.broken.sum())} | {missed} "
                f"| {own.forwards:.0f} / {other.forwards:.0f} | {own.backwards:.0f} / {other.backwards:.0f} "
                f"| {other.seconds / own.seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
