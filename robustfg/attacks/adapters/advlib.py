"""Attacks of adv-lib (Rony & Ben Ayed)."""

import importlib.util
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

from torch import Tensor

from robustfg.attacks.adapters.base import Peer
from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.adapters.lookup import ORDERS, arguments, chosen, length, load, refuse_other_norm
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AdvLib(Peer):
    """A function of ``adv_lib.attacks``, untargeted.

    Norm and epsilon come from the threat model where the function takes them; otherwise what lies outside is projected.
    ``pgd_linf`` takes one step less than it is told.

    Args:
        attack: the function, such as ``apgd``.
    """

    package: ClassVar[str] = "adv-lib"
    wanted: ClassVar[str] = "--no-deps adv-lib"  # its visdom cannot be built by Python 3.11's pip
    attack: str

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_other_norm(self.attack, self.threat, self.package)
        self._arguments()
        if self.attack == "pgd_linf" and self.steps < 2:
            raise UserError(f"{self.title}: steps must be >= 2, got {self.steps}: with 1 it returns the clean image")

    @property
    def title(self) -> str:
        return f"adv-lib {self.attack}"

    @property
    def steps(self) -> int:
        return length(self._call(), self.options)

    def craft(self, model: Witness, batch: ActiveBatch, seed: int) -> Tensor:
        loss = self._arguments().get("loss_function", inspect.signature(self._call()).parameters.get("loss_function"))
        needed = 4 if self.attack == "apgd_targeted" else 3 if "dlr" in str(loss) else 2
        if needed > 2 and batch.logits.shape[1] < needed:
            raise UserError(f"{self.title}: this loss needs {needed} classes, got {batch.logits.shape[1]}")
        found: Tensor = self._call()(model, batch.clean.clone(), batch.label.clone(), **self._arguments())
        return found

    def _call(self) -> Any:
        attacks = _imported(self.package, self.wanted)
        calls = {name: call for name, call in vars(attacks).items() if inspect.isfunction(call)}
        return calls[chosen(self.attack, calls, self.package)]

    def _arguments(self) -> dict[str, object]:
        radius, order = self.threat.radius, float(ORDERS[self.threat.norm])
        decided = {"eps": radius, "ε": radius, "norm": order}
        return arguments(
            self._call(), self.options, threat=self.threat, title=self.title, given={}, decided=decided
        )  # fmt: skip


def _imported(package: str, wanted: str) -> ModuleType:
    """Imports adv-lib, which asks for the plotting server visdom although only callbacks use it."""
    absent = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if absent:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        return load("adv_lib.attacks", package, wanted)
    finally:
        if absent:
            del sys.modules["visdom"]
