"""Attacks of foolbox (Rauber et al. 2017)."""

import inspect
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustfg.attacks.adapters.base import Peer
from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.adapters.lookup import ORDERS, arguments, chosen, length, load
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Foolbox(Peer):
    """An attack of ``foolbox.attacks``, untargeted, at the threat model's epsilon.

    Its distance must be the threat model's norm. Attacks that minimise the perturbation may stop at epsilon; what lies
    outside is projected. Decision-based attacks find their start by foolbox's own rule; a sample without a start
    stays clean.

    Args:
        attack: the class, such as ``LinfPGD``.
    """

    package: ClassVar[str] = "foolbox"
    attack: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made()

    @property
    def title(self) -> str:
        return f"foolbox {self.attack}"

    @property
    def steps(self) -> int:
        return length(self._kind()[1], self.options)

    def craft(self, model: Witness, batch: ActiveBatch, seed: int) -> Tensor:
        foolbox, attack = self._made()
        subject = foolbox.PyTorchModel(model, bounds=(0, 1), device=batch.clean.device)

        def crafted(image: Tensor, label: Tensor) -> Tensor:
            criterion = foolbox.criteria.Misclassification(label)
            try:
                found: Tensor = attack(subject, image, criterion, epsilons=self.threat.radius)[0]
                return found
            except ValueError as error:  # one sample without a start stops foolbox for all
                if "init_attack failed" not in str(error):
                    raise
            if len(image) == 1:
                return image
            half = len(image) // 2
            return torch.cat([crafted(image[part], label[part]) for part in (slice(half), slice(half, None))])

        return crafted(batch.clean.clone(), batch.label.clone())

    def _kind(self) -> tuple[ModuleType, Any]:
        foolbox = _imported(self.package, self.wanted)
        kinds = {name: kind for name, kind in vars(foolbox.attacks).items() if inspect.isclass(kind)}
        kinds = {name: kind for name, kind in kinds.items() if issubclass(kind, foolbox.attacks.Attack)}
        del kinds["Attack"]
        return foolbox, kinds[chosen(self.attack, kinds, self.package)]

    def _made(self) -> tuple[ModuleType, Any]:
        foolbox, kind = self._kind()
        flexible = issubclass(kind, foolbox.attacks.base.FlexibleDistanceMinimizationAttack)
        norm = {"distance": getattr(foolbox.distances, self.threat.norm)} if flexible else {}
        options = arguments(kind, self.options, threat=self.threat, title=self.title, given={}, decided=norm)
        try:
            attack = kind(**options)
            order = getattr(attack.distance, "p", None)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"{self.title}: {error}") from error
        if order != ORDERS[self.threat.norm]:
            raise UserError(f"{self.title} measures {attack.distance}, the threat model is {self.threat.norm}")
        return foolbox, attack


def _imported(package: str, wanted: str) -> ModuleType:
    """Imports foolbox, whose model zoo would fail where there is no git command."""
    before = os.environ.get("GIT_PYTHON_REFRESH")
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        return load("foolbox", package, wanted)
    finally:
        if before is None:
            del os.environ["GIT_PYTHON_REFRESH"]
        else:
            os.environ["GIT_PYTHON_REFRESH"] = before
