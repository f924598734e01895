"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018)."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustfg.attacks.adapters.base import Peer
from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.adapters.lookup import ORDERS, arguments, chosen, length, load, refuse_other_norm
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ART(Peer):
    """An attack of ``art.attacks.evasion``, untargeted, on float32 NumPy arrays.

    ``norm`` and ``eps`` come from the threat model where the attack takes them; otherwise what lies outside is
    projected. HopSkipJump starts from numbers that no seed reaches. Importing ART makes a folder ``~/.art``.

    Args:
        attack: the class, such as ``ProjectedGradientDescent``.
    """

    package: ClassVar[str] = "adversarial-robustness-toolbox"
    attack: str

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_other_norm(self.attack, self.threat, "ART")
        self._arguments(64)

    @property
    def title(self) -> str:
        return f"ART {self.attack}"

    @property
    def steps(self) -> int:
        return length(self._kind(), self.options)

    def craft(self, model: Witness, batch: ActiveBatch, seed: int) -> Tensor:
        estimators = load("art.estimators.classification", self.package, self.wanted)
        classes = batch.logits.shape[1]
        if classes < 3 and self.options.get("loss_type") == "difference_logits_ratio":
            raise UserError(f"{self.title}: difference_logits_ratio needs 3 classes, got {classes}")
        classifier = estimators.PyTorchClassifier(
            model, loss=nn.CrossEntropyLoss(), input_shape=tuple(batch.clean.shape[1:]), nb_classes=classes,
            clip_values=(0.0, 1.0), device_type="gpu" if batch.clean.is_cuda else "cpu",
        )  # fmt: skip
        try:
            attack = self._kind()(classifier, **self._arguments(len(batch)))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.title}: {error}") from error
        image = batch.clean.cpu().float().numpy().copy()
        return torch.from_numpy(attack.generate(image, y=batch.label.cpu().numpy().copy()))

    def _kind(self) -> Any:
        evasion = load("art.attacks.evasion", self.package, self.wanted)
        base = load("art.attacks.attack", self.package, self.wanted).EvasionAttack
        kinds = {name: kind for name, kind in vars(evasion).items() if inspect.isclass(kind) and issubclass(kind, base)}
        return kinds[chosen(self.attack, kinds, self.package)]

    def _arguments(self, batch: int) -> dict[str, object]:
        threat = {"norm": ORDERS[self.threat.norm], "eps": self.threat.radius}
        ours = {"batch_size": max(batch, 64), "verbose": False}
        options = {"threat": self.threat, "title": self.title}
        return arguments(self._kind(), self.options, **options, given=ours, decided=threat)  # type: ignore[arg-type]
