"""The same attacks in other libraries, as far as they are installed."""

import contextlib
import logging
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
from subjects import Subject
from torch import Tensor

Run = Callable[[], Tensor]
STEP = 0.25  # of epsilon


def peer_attacks(attack: str, subject: Subject, steps: int) -> dict[str, Run]:
    """Every library's version of ``fgsm``, ``pgd10``, ``pgd40`` or ``apgd`` (cross-entropy, last or best iterate)."""
    found: dict[str, Run] = {}
    for make in (_foolbox, _art, _advlib, _torchattacks, _pyautoattack):
        with contextlib.suppress(ImportError):
            found |= dict(make(attack, subject, steps))
    return found


def _foolbox(attack: str, s: Subject, steps: int) -> Iterator[tuple[str, Run]]:
    import foolbox

    if attack == "apgd":
        return
    model = foolbox.PyTorchModel(s.model, bounds=(0, 1), device=s.image.device)
    wrong = foolbox.criteria.Misclassification(s.label)
    made = (
        foolbox.attacks.LinfFastGradientAttack(random_start=False)
        if attack == "fgsm"
        else foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=STEP, random_start=True)
    )
    yield "foolbox", lambda: made(model, s.image, wrong, epsilons=s.epsilon)[1]


def _art(attack: str, s: Subject, steps: int) -> Iterator[tuple[str, Run]]:
    from art.attacks.evasion import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        s.model, torch.nn.CrossEntropyLoss(), tuple(s.image.shape[1:]), 10, clip_values=(0, 1),
        device_type="gpu" if s.image.is_cuda else "cpu",
    )  # fmt: skip
    batch = {"batch_size": len(s.label)}
    if attack == "fgsm":
        made = FastGradientMethod(classifier, eps=s.epsilon, **batch)
    elif attack == "apgd":
        made = AutoProjectedGradientDescent(
            classifier, eps=s.epsilon, eps_step=2 * s.epsilon, max_iter=steps, nb_random_init=1,
            loss_type="cross_entropy", verbose=False, **batch,
        )  # fmt: skip
    else:
        made = ProjectedGradientDescentPyTorch(
            classifier, eps=s.epsilon, eps_step=STEP * s.epsilon, max_iter=steps, num_random_init=1, verbose=False,
            **batch,
        )  # fmt: skip
    image, label = s.image.cpu().numpy(), s.label.cpu().numpy()
    yield "ART", lambda: torch.from_numpy(np.asarray(made.generate(image, label))).to(s.image)


def _advlib(attack: str, s: Subject, steps: int) -> Iterator[tuple[str, Run]]:
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # imported and not used by the attacks
    from adv_lib.attacks import apgd, pgd_linf

    if attack == "apgd":
        yield (
            "adv-lib",
            lambda: apgd(s.model, s.image, s.label, eps=s.epsilon, norm=np.inf, n_iter=steps, loss_function="ce"),
        )
    elif attack != "fgsm":
        options = {"ε": s.epsilon, "steps": steps + 1, "relative_step_size": STEP, "loss_function": "ce"}
        yield "adv-lib", lambda: pgd_linf(s.model, s.image, s.label, **options)  # one more: its last is not taken


def _torchattacks(attack: str, s: Subject, steps: int) -> Iterator[tuple[str, Run]]:
    import torchattacks

    if attack == "fgsm":
        made = torchattacks.FGSM(s.model, eps=s.epsilon)
    elif attack == "apgd":
        made = torchattacks.APGD(s.model, eps=s.epsilon, steps=steps, loss="ce")
    else:
        made = torchattacks.PGD(s.model, eps=s.epsilon, alpha=STEP * s.epsilon, steps=steps, random_start=True)
    yield "torchattacks", lambda: made(s.image, s.label)


def _pyautoattack(attack: str, s: Subject, steps: int) -> Iterator[tuple[str, Run]]:
    from pyautoattack.autopgd_base import APGDAttack

    if attack != "apgd":
        return
    made = APGDAttack(
        s.model, n_iter=steps, norm="Linf", n_restarts=1, eps=s.epsilon, seed=0, loss="ce", eot_iter=1, rho=0.75,
        device=str(s.image.device), logger=logging.getLogger("auto-attack"),
    )  # fmt: skip
    yield "pyautoattack", lambda: made.perturb(s.image, s.label)
