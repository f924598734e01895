"""AutoAttack as published (Croce & Hein 2020), from the maintained fork pyautoattack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustfg.attacks.adapters.base import Peer
from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.adapters.lookup import chosen, load, number
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.core.errors import UserError

VERSIONS = ("standard", "plus", "rand", "custom")
STAGES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
PARTS = ("apgd", "apgd_targeted", "fab", "square")
THREAT = ("eps", "eps_orig", "norm")
DECIDED = (
    "model", "predict", "device", "seed", "logger", "is_tf_model", "n_iter_orig", "targeted", "target_class",
    "y_target",
)  # fmt: skip
CLASSES = {"apgd-t": 4, "apgd-dlr": 3}  # what DLR and targeted DLR sort


@dataclass(frozen=True, kw_only=True)
class PyAutoAttack(Peer):
    """The whole of ``pyautoattack.AutoAttack``, on float32 images.

    Targeted stages aim at as many classes as there are others, at most nine (five for APGD-T in l1). Its passes
    include those of its own checks.

    Args:
        version: ``standard``, ``plus``, ``rand`` or ``custom``.
        attacks_to_run: stages of ``custom``: ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``, ``fab-t``, ``square``.
        options: settings of its parts, such as ``{"square": {"n_queries": 1000}}``; the parts are ``apgd``,
            ``apgd_targeted``, ``fab`` and ``square``.
    """

    package: ClassVar[str] = "pyautoattack"
    version: str = "standard"
    attacks_to_run: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in VERSIONS:
            raise UserError(f"version must be one of {', '.join(VERSIONS)}, got {self.version}")
        if (self.version == "custom") != bool(self.attacks_to_run):
            raise UserError(f"attacks_to_run goes with version=custom, got {self.attacks_to_run} with {self.version}")
        for stage in self.attacks_to_run or ():
            chosen(stage, STAGES, self.package)
        self._made(None, 0, "cpu")

    @property
    def title(self) -> str:
        return f"pyautoattack {self.version}"

    @property
    def steps(self) -> int:
        """Of the longest stage."""
        attack = self._made(None, 0, "cpu")
        iterations = {"apgd": attack.apgd.n_iter, "fab": attack.fab.n_iter, "square": attack.square.n_queries}
        iterations["apgd-t"] = attack.apgd_targeted.n_iter
        return int(max(iterations.get(s, iterations[s.split("-")[0]]) for s in attack.attacks_to_run))

    def describe(self) -> Mapping[str, object]:
        stages = [] if self.attacks_to_run is None else list(self.attacks_to_run)
        return {**super().describe(), "version": self.version, "attacks_to_run": stages}

    def craft(self, model: Witness, batch: ActiveBatch, seed: int) -> Tensor:
        attack = self._made(model, seed, batch.clean.device)
        classes = batch.logits.shape[1]
        for stage in attack.attacks_to_run:
            if classes < CLASSES.get(stage, 2):
                raise UserError(
                    f"{self.title}: {stage} needs {CLASSES[stage]} classes, got {classes}; choose version=custom and "
                    "attacks_to_run without it"
                )
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        found: Tensor = attack.run_standard_evaluation(
            batch.clean.float().clone(), batch.label.clone(), batch_size=len(batch)
        )[0]  # fmt: skip
        return found

    def _made(self, model: Witness | None, seed: int, device: object) -> Any:
        library = load("pyautoattack", self.package, self.wanted)
        stages = None if self.attacks_to_run is None else list(self.attacks_to_run)
        attack = library.AutoAttack(
            model, attacks=stages, device=device, eps=self.threat.radius, norm=NORMS[self.threat.norm], seed=seed,
            version=self.version,
        )  # fmt: skip
        attack.verbose = False
        for part, settings in self.options.items():
            if part not in PARTS or not isinstance(settings, Mapping):
                raise UserError(f"{self.title}: options are of {', '.join(PARTS)}, got {part!r}")
            for name, value in settings.items():
                self._set(getattr(attack, part), f"{part}.{name}", name, number(value, self.threat.radius))
        return attack

    def _set(self, part: Any, option: str, name: str, value: object) -> None:
        if name in THREAT:
            raise UserError(f"{self.title}: options.{option} is the threat model's; set threat")
        if name in DECIDED or option == "apgd.loss":
            raise UserError(f"{self.title}: options.{option} is decided by the stage or by robustfg; leave it out")
        if name not in vars(part):
            raise UserError(f"{self.title}: {option.partition('.')[0]} has no option {name!r}")
        setattr(part, name, value)
        if name == "n_iter" and "n_iter_orig" in vars(part):
            part.n_iter_orig = value  # what APGD in l1 reads
