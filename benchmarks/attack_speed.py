"""Attacks beside other libraries: time in units of the floor, one forward and one backward to the image a step.

Run: python benchmarks/attack_speed.py [--subject small_cnn|resnet18] [--rounds 3] [--attacks fgsm,pgd10,pgd40,apgd]
         [--batch 64] [--size 64]
Libraries that are not installed are left out. Both sides run in one process, on the same images, in turns.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from peers import peer_attacks
from subjects import Subject, resnet18, small_cnn, subject
from timing import median_ratios

from robustfg.attacks import APGD, FGSM, PGD, CrossEntropy, Engine, Linf
from robustfg.attacks.search import Search

LIMITS = {  # of the floor, and the least gain over the fastest library, as (small_cnn, resnet18)
    ("fgsm", "robustfg"): (1.05, 1.05),
    ("pgd10", "robustfg, last iterate"): (1.05, 0.85),
    ("pgd40", "robustfg, last iterate"): (1.05, 0.85),
    ("pgd10", "robustfg"): (None, 0.65),
    ("pgd40", "robustfg"): (None, 0.55),
}
STEPS = {"fgsm": 1, "pgd10": 10, "pgd40": 40, "apgd": 100}


def floor(subject: Subject, steps: int) -> Callable[[], object]:
    """The least that an attack of so many steps can do on the network as it is."""

    def run() -> None:
        image = subject.image
        for _ in range(steps):
            image = image.detach().requires_grad_()
            loss = F.cross_entropy(subject.model(image), subject.label, reduction="sum")
            torch.autograd.grad(loss, image)

    return run


def ours(subject: Subject, attack: str) -> dict[str, Search]:
    """Our side: last iterate, and with fooled samples dropped; also without what the engine chooses."""
    epsilon, steps = subject.epsilon, STEPS[attack]
    if attack == "fgsm":
        attacks: dict[str, Search] = {"robustfg": FGSM(epsilon=epsilon)}
    elif attack == "apgd":
        attacks = {"robustfg": APGD(threat=Linf(epsilon=epsilon), steps=steps, objective=CrossEntropy())}
    else:
        pgd = PGD(epsilon=epsilon, steps=steps, step_size="eps/4", objective=CrossEntropy())
        attacks = {"robustfg": pgd, "robustfg, last iterate": replace(pgd, last_iterate=True)}
    last = list(attacks)[-1]
    engines = {"not folded": Engine(fold=False)}
    if subject.image.is_cuda:
        engines |= {"no CUDA graphs": Engine(compile=False), "bfloat16": Engine(autocast="bfloat16")}
    return attacks | {f"{last}, {name}": replace(attacks[last], engine=engine) for name, engine in engines.items()}


def compare(subject: Subject, attack: str, device: str, rounds: int) -> bool:
    """Prints one table; whether all limits hold."""
    model, image, label = subject.model, subject.image, subject.label
    works: dict[str, Callable[[], object]] = {"floor": floor(subject, STEPS[attack])}
    for name, own in ours(subject, attack).items():
        works[name] = lambda own=own: own(model, image, label)  # type: ignore[misc]
    peers = peer_attacks(attack, subject, STEPS[attack])
    works |= peers
    ratios = median_ratios(works, "floor", device, rounds=rounds, repeats=1)
    fastest = min((ratios[name] for name in peers), default=float("nan"))
    print(f"\n{subject.name}, {attack}, {len(label)} images of {image.shape[-1]} px, {device}")
    print("| | × floor | fastest library ÷ this | accuracy left |")
    print("|---|---|---|---|")
    kept = True
    for name, work in works.items():
        found = work()
        left = "" if name == "floor" else f"{float((model(found).argmax(1) == label).float().mean()):.3f}"
        ratio, limit = ratios[name], LIMITS.get((attack, name), (None, None))
        most = limit[subject.name == "resnet18"]
        note = "" if most is None else f" (limit {most})"
        kept &= most is None or ratio <= most
        print(f"| {name} | {ratio:.2f}{note} | {fastest / ratio:.2f} | {left} |", flush=True)
    return kept


def main() -> None:
    """Prints the tables of the chosen subjects and attacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="small_cnn,resnet18")
    parser.add_argument("--attacks", default="fgsm,pgd10,pgd40,apgd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    makers = {"small_cnn": small_cnn, "resnet18": resnet18}
    kept = True
    for name in options.subject.split(","):
        torch.manual_seed(0)
        chosen = subject(name, makers[name](), device, batch=options.batch, size=options.size)
        for attack in options.attacks.split(","):
            kept &= compare(chosen, attack, device, options.rounds)
    if not kept:
        raise SystemExit("over a limit")


if __name__ == "__main__":
    main()
