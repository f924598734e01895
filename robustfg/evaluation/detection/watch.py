"""The detectors' part in a robustness evaluation: fit, calibrate, attack together, and tell what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl

from robustfg.attacks import Attack, Threat
from robustfg.attacks.minimum_norm.base import MinimumNormAttack
from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.detectors import Fitted
from robustfg.evaluation.checks import Check
from robustfg.evaluation.checks.probes import largest_balls
from robustfg.evaluation.detection import checks
from robustfg.evaluation.detection.attackers import FORCED, SEMI_WHITE_BOX, WHITE_BOX, joint_attacks, scale_of
from robustfg.evaluation.detection.calibration import calibrated
from robustfg.evaluation.detection.contents import Contents, files_of
from robustfg.evaluation.detection.half_epsilon import best_known, summary_at
from robustfg.evaluation.detection.operating import needed
from robustfg.evaluation.detection.options import Detection
from robustfg.evaluation.detection.probes import DIFFERENCE, GRADIENT, slopes
from robustfg.evaluation.detection.readings import Readings
from robustfg.evaluation.detection.reference import joint_references
from robustfg.evaluation.detection.summary import Attackers, DetectorSummary
from robustfg.evaluation.detection.unknown_images import UnknownImages
from robustfg.evaluation.detection.unwatched import Rows, Unwatched
from robustfg.evaluation.detection.watched import WatchedClassifier
from robustfg.evaluation.measure import LEAST, SCORE, Classify
from robustfg.evaluation.records import column


class Watch(Unwatched):
    """An evaluation with detectors, fitted and calibrated on the way.

    Args:
        detection: the options.
        trainer: has the data module and the processes.
        classifier: what is evaluated.
        suite: attacks on the classifier alone.
        about: what else the file of the detectors tells, such as the hash of the weights.
    """

    def __init__(
        self, detection: Detection, trainer: pl.Trainer, classifier: pl.LightningModule, suite: Mapping[str, Attack],
        about: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.data = cast(DataModule, trainer.datamodule)  # type: ignore[attr-defined]
        self.detection, self.suite, self.about = detection, dict(suite), dict(about)
        self.threat = claimed_ball(suite)
        watched = WatchedClassifier(classifier, detection.detectors)
        super().__init__(cast(Classify, classifier))
        self.judged = cast(Classify, watched)
        self.watched = watched
        self.contents = Contents()
        self.calibration = calibrated(watched, trainer, self.data, self.contents)
        refuse_few(detection.fpr, len(self.calibration), self.calibration.considered)
        self.unknown = UnknownImages(detection, self.calibration, self.threat, self.data, trainer)
        self.by_detector = {name: self._joint(name) for name in watched.detectors}
        for name, models in self.by_detector.items():
            for attacks in models.values():
                self.attacks |= attacks
            self.references |= self._references(name) if detection.white_box else {}
        self.slopes = [kind + name for name in watched.detectors for kind in (GRADIENT, DIFFERENCE)]
        self.probes = [*self.probes, *self.slopes]
        splits = self.data.describe()
        self.splits = {"fit": splits["train"], "calibration": splits["val"], "test": splits["test"]}
        self.identity = [{name: dict(node) for name, node in detection.nodes.items()}, self.splits]

    def _joint(self, name: str) -> dict[str, dict[str, Attack]]:
        thresholds = self.calibration.thresholds(name, self.detection.levels)
        tau, lowest = thresholds[self.detection.fpr], min(thresholds.values())
        return joint_attacks(self.detection, name, self.threat, self.calibration, tau=tau, lowest=lowest)

    def _references(self, name: str) -> dict[str, Attack]:
        tau = self.calibration.thresholds(name, self.detection.levels)[self.detection.fpr]
        scale = scale_of(self.calibration, name, tau)
        return joint_references(name, self.threat, tau=tau, scale=scale, seed=self.detection.seed)

    def detector(self, attack: str) -> str | None:
        aimed = attack in self.attacks | self.references and not attack.startswith(FORCED)
        return attack.split("/")[1] if aimed else None

    def see(self, batch: Batch) -> None:
        self.contents.note("test", batch)

    def measure(self, folder: Path, about: Sequence[object]) -> None:
        self.unknown.measure(self.watched, folder, about)

    def probe(self, batch: Batch) -> Rows:
        found = [told for name in self.watched.detectors for told in slopes(self.watched, name, batch)]
        return super().probe(batch) + self._probed(batch, self.slopes, found)

    def apart(self, table: pa.Table) -> pa.Table:
        said = [name for name in table.column_names if name.startswith((SCORE, LEAST))]
        return table.filter(
            ~np.isin(column(table, "attack"), [*self.attacks, *self.references, *self.slopes])
        ).drop_columns(said)

    def told(
        self, table: pa.Table, suite: Mapping[str, Any], also: Mapping[str, Attack], verdict: str, *, checked: bool
    ) -> tuple[dict[str, Any], list[Check]]:
        known = best_known(self.threat, suite, self.detection.half_epsilon, cast("str | None", self.about.get("data")))
        hygiene = self._hygiene()
        alone = self.suite | dict(also)
        counted = [name for name, attack in alone.items() if within(attack.threat, self.threat)]
        found, everything = {}, {}
        for name in self.watched.detectors:
            attackers = self._attackers(name, counted)
            numbers = self._numbers(table, name, attackers)
            judged = [hygiene, *self._checks(table, numbers, attackers, known, name)] if checked else []
            everything[name] = judged
            found[name] = numbers.as_dict() | {
                "checks": [check.as_dict() for check in judged],
                "verdict": checks.detector_verdict(judged, verdict, white_box=WHITE_BOX in attackers.own),
            }
        left_out = [name for name in self.suite if name not in counted]
        block = {
            "fpr": self.detection.fpr,
            "threat": {"norm": self.threat.norm, "epsilon": str(self.threat.epsilon), "left_out": left_out},
            "splits": self.splits | {"calibration": {**self.splits["calibration"], "right": len(self.calibration)}},
            "attacks": {name: dict(attack.shown()) for name, attack in self.attacks.items()},
            "references": {name: dict(attack.shown()) for name, attack in self.references.items() if checked},
            "surrogate": self.detection.surrogate_name or None,
            "detectors": found,
        }
        return {"detection": block} | self.unknown.told(table), checks.united(everything)

    def _hygiene(self) -> Check:
        """By the pixels of the images that were read; of a training split that no detector read, by files' bytes."""
        contents = self.contents.seen()
        pixels = checks.detector_hygiene(contents, {split: self.data.keys(split) for split in contents})
        if "train" in contents:
            return pixels
        files = files_of(self.data)
        found = checks.detector_hygiene(files, {split: self.data.keys(split) for split in files})
        worse = pixels if pixels.status == "fail" else found
        return replace(worse, detail=f"{worse.detail}; training images are compared by their files' bytes")

    def _attackers(self, name: str, alone: list[str]) -> Attackers:
        """Who attacked a detector; ``alone``: attacks on the classifier alone that count."""
        joint = {model: list(attacks) for model, attacks in self.by_detector[name].items() if model != FORCED}
        forced = list(self.by_detector[name].get(FORCED, {}))
        own = {SEMI_WHITE_BOX: [attack for attack in alone if attack in self.suite], **joint}
        union = {SEMI_WHITE_BOX: alone, **joint}
        if WHITE_BOX in joint:  # whoever was aimed at: all were tried
            union[WHITE_BOX] = [*alone, *self.attacks, *self.references]
        radius = {name: attack.threat.radius for name, attack in (self.suite | self.attacks).items()}
        return Attackers(union, own, SEMI_WHITE_BOX, forced, radius)

    def _numbers(self, table: pa.Table, name: str, attackers: Attackers) -> DetectorSummary:
        scores = np.sort(self.calibration.scores[name].numpy().astype(float))
        options = self.detection
        return DetectorSummary(
            Readings(table, name), scores, attackers, fpr=options.fpr, levels=options.levels, seed=options.seed
        )

    def _checks(
        self, table: pa.Table, numbers: DetectorSummary, attackers: Attackers, known: float | None, name: str
    ) -> list[Check]:
        readings, tau = numbers.readings, numbers.tau
        own = attackers.own.get(WHITE_BOX, [])
        tried = [attack for names in attackers.joint.values() for attack in names if attack not in self.references]
        weaker = [attack for attack in tried if attack not in own]
        claimed = numbers.claim(WHITE_BOX if own else SEMI_WHITE_BOX)
        return [
            checks.detector_graph(table, name),
            checks.adaptive_dominates(readings, own, weaker, tau),
            checks.realised_fpr(readings.clean[readings.right], tau, numbers.calibration, self.detection.fpr),
            checks.half_epsilon(claimed["ci95"][0], known, claimed["n"]),
            checks.joint_reference(readings, tried, list(self.references), tau),
            checks.effort(self.detection.steps),
        ]

    def write(self, folder: Path) -> None:
        super().write(folder)
        self.unknown.write(folder)
        calibration = {name: scores.sort().values for name, scores in self.calibration.scores.items()}
        about = self.about | {"fpr": self.detection.fpr, "splits": self.splits}
        fitted = Fitted(dict(self.detection.detectors), self.detection.nodes, calibration, about)
        fitted.write(folder / "detectors.pt")


def refuse_few(fpr: float, right: int, considered: int) -> None:
    """Raises ``UserError`` where too few validation samples are classified right to reject any at a rate."""
    if right < (enough := needed(fpr)):
        raise UserError(
            f"evaluation.detection.fpr={fpr:g} needs {enough} validation samples that are classified right, there are "
            f"{right} of {considered}; raise it or data.val_fraction"
        )


def refuse_unwatchable(detection: Detection, suite: Mapping[str, Attack], data: DataModule, split: str) -> None:
    """Raises ``UserError`` for what no classifier could be watched with, before there is one.

    Args:
        detection: the options.
        suite: attacks on the classifier alone.
        data: the data module.
        split: what shall be evaluated.
    """
    if split != "test":
        raise UserError("evaluation.split=val cannot be evaluated with detectors, which are calibrated on it")
    claimed_ball(suite)
    refuse_few(detection.fpr, *[len(data.positions["val"])] * 2)
    for run in detection.half_epsilon:
        summary_at(run)


def claimed_ball(suite: Mapping[str, Attack]) -> Threat:
    """What a claim is about: the largest ball of the first norm that a suite attacks in.

    Attacks that look for the smallest perturbation count only where there are no others: their epsilon may be one that
    no image exceeds.

    Raises:
        UserError: if it attacks in none.
    """
    bounded = [attack.threat for attack in suite.values() if not isinstance(attack, MinimumNormAttack)]
    balls = largest_balls(bounded) or largest_balls(attack.threat for attack in suite.values())
    if not balls:
        raise UserError("attack: evaluation with detectors needs an attack in an l-inf, l2 or l1 ball, such as quick")
    return balls[0]


def within(threat: Threat, ball: Threat) -> bool:
    """Whether all that a threat model allows lies in a ball: one of the same norm that is not larger."""
    return type(threat) is type(ball) and threat.radius <= ball.radius


def watch_over(
    detection: Detection | None, trainer: pl.Trainer, classifier: pl.LightningModule, suite: Mapping[str, Attack],
    about: Mapping[str, Any],
) -> Unwatched:  # fmt: skip
    """The detectors' part in an evaluation; arguments as for ``Watch``, ``detection`` None where none is wanted."""
    if detection is None:
        return Unwatched(cast(Classify, classifier))
    return Watch(detection, trainer, classifier, suite, about)
