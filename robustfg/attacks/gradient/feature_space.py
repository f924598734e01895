"""Attacks in feature space: towards a centre of a wrong class, or towards the feature of a real image of one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.gradient.step_rules import Steepest, StepRule
from robustfg.attacks.objectives.acceptance import Reading
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.eval_mode import Model, attackable
from robustfg.attacks.search import Search
from robustfg.core.errors import UserError
from robustfg.core.types import Output, logits_of


def embedding_of(output: Output | Tensor) -> Tensor:
    """The feature ``(B, D)`` of a classifier's output."""
    if not isinstance(output, Output):
        raise UserError("a feature attack needs a model that returns an Output with its embedding, not plain logits")
    return output.embedding


@dataclass(frozen=True)
class FeatureBank:
    """Features to aim at, such as the centres of a head or the features of training images.

    Args:
        embedding: ``(N, D)``.
        label: ``(N,)`` the class of each.
    """

    embedding: Tensor
    label: Tensor

    def __post_init__(self) -> None:
        if self.embedding.dim() != 2 or self.label.shape != self.embedding.shape[:1]:
            shapes = tuple(self.embedding.shape), tuple(self.label.shape)
            raise UserError(f"bank: need features (N, D) and labels (N,), got {shapes[0]} and {shapes[1]}")
        if not bool((self.label != self.label[:1]).any()):
            raise UserError("bank: need features of two classes at least, or some samples have nothing to aim at")

    @classmethod
    def of(cls, model: Model, images: Tensor, labels: Tensor) -> Self:
        """The model's features of given images ``(N, C, H, W)``; give images that it classifies rightly."""
        with attackable(model), torch.no_grad():
            return cls(embedding_of(model(images.detach().clone())).clone(), labels.detach().clone())

    @classmethod
    def accepted(
        cls, model: Model, batches: Iterable[Sequence[Tensor]], *, score: Reading, tau: float, per_class: int = 50
    ) -> Self:
        """The model's features of images that it classifies rightly and a detector accepts, in the order given.

        Args:
            model: what is attacked; answers with an ``Output``.
            batches: images ``(B, C, H, W)`` on the model's device, labels ``(B,)`` and whatever else, such as the
                training set in a fixed order.
            score: how abnormal an input looks, ``(B,)``.
            tau: accepted where the score is at most this.
            per_class: images kept of every class at the most, the first ones.
        """
        features: list[Tensor] = []
        labels: list[int] = []
        kept: Counter[int] = Counter()
        with attackable(model), torch.no_grad():
            for image, label, *_ in batches:
                output = model(image.detach().clone())
                feature, right = embedding_of(output), logits_of(output).argmax(1) == label
                for row in (right & (score(output) <= tau)).nonzero().flatten().tolist():
                    known = int(label[row])
                    if kept[known] < per_class:
                        kept[known] += 1
                        features.append(feature[row].clone())
                        labels.append(known)
        if len(kept) < 2:
            raise UserError(
                f"bank: images of {len(kept)} classes are rightly classified and accepted, need two at least"
            )
        return cls(torch.stack(features), torch.tensor(labels, device=features[0].device))

    @classmethod
    def read(cls, path: str) -> Self:
        """What ``write`` wrote."""
        if not Path(path).is_file():
            raise UserError(f"bank.path: there is no feature bank at {path}")
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            return cls(stored["embedding"], stored["label"])
        except UserError:
            raise
        except Exception as error:  # what torch raises on a damaged file differs from case to case
            raise UserError(f"bank.path: {path} is no feature bank: {error}") from error

    def write(self, path: str) -> None:
        """Writes tensors only."""
        torch.save({"embedding": self.embedding, "label": self.label}, path)

    def nearest_wrong(self, feature: Tensor, label: Tensor, rank: int = 0) -> Tensor:
        """Positions in the bank of the nearest entries of wrong classes, ``(B,)``.

        Args:
            feature: ``(B, D)``.
            label: ``(B,)`` true classes.
            rank: 0 for the nearest, 1 for the next; the farthest where there are fewer.
        """
        wrong = self.label != label[:, None]
        distance = torch.cdist(feature, self.embedding, compute_mode="donot_use_mm_for_euclid_dist")
        order = distance.masked_fill(~wrong, torch.inf).argsort(dim=1, stable=True)
        place: Tensor = (wrong.sum(1) - 1).clamp_max(rank)
        return order.gather(1, place[:, None]).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class FeatureAttack(Search):
    """Projected gradient descent on ``||f(x') - f_t||^2`` for an entry f_t of a bank.

    With centres and ``moving`` this is what broke MMC (Zimmermann et al. 2022): random start, 50 steps, always towards
    the centre of a wrong class that is nearest at the moment. With features of real images it is feature matching,
    which also passes detectors; then keep the target and let restarts try the next nearest ones.

    Args:
        bank: what to aim at, of the attacked model.
        step: the step rule.
        steps: gradient steps per restart.
        random_start: start at a point drawn from the ball.
        moving: choose the target anew at every step. False: choose it at the start of each restart, the nearest in the
            first, the next in the second, and so on.
    """

    bank: FeatureBank
    step: StepRule = field(default_factory=lambda: Steepest(size="eps/4"))
    steps: int = 50
    random_start: bool = True
    moving: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "step_rule": type(self.step).__name__.lower(),
            **{f"step_{option}": str(value) for option, value in vars(self.step).items()},
            "random_start": self.random_start,
            "restarts": self.restarts,
            "objective": "nearest wrong feature" if self.moving else "chosen wrong feature",
            "bank": len(self.bank.label),
            "seed": self.seed,
        }

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One forward and one backward pass a step; samples that are fooled leave."""
        entries, classes = self.bank.embedding.to(batch.clean), self.bank.label.to(batch.label)
        bank, rank = FeatureBank(entries, classes), 0 if self.moving else restart
        threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        current, memory, target = batch.clean, None, None
        if self.random_start or (restart and self.moving):
            noise = threat.uniform(batch.clean, batch.index, *draws.key)
            current = threat.project(batch.clean + noise, batch.clean)
        for _ in range(self.steps):
            image = current.detach().requires_grad_()
            feature = embedding_of(batch.evaluate(image, graph=True)[0]).to(image.dtype)
            if self.moving or target is None:
                target = bank.nearest_wrong(feature.detach(), batch.label, rank)
            closeness = -(feature - bank.embedding[target]).square().sum(1)
            gradient = batch.backward(closeness, image)
            moved, memory = self.step(current, gradient, memory, threat)
            current, standing = threat.project(moved, batch.clean), len(batch)
            current, memory, target = batch.drop_fooled(current, memory, target)
            if not len(batch):
                return
            if len(batch) < standing:
                threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        batch.evaluate(current)
