"""One perturbation for all images (Moosavi-Dezfooli et al. 2017), learned by gradient steps (Shafahi et al. 2020).

Learn it on training or validation images, never on those it is judged by::

    perturbation = fit(classifier, data.train_dataloader(), threat=Linf(epsilon="8/255"))
    torch.save(perturbation, "universal.pt")

and evaluate with ``attack=universal attack.universal.path=universal.pt``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.batch.input_gradient import gradient_of
from robustfg.attacks.objectives.logits import CrossEntropy, Objective
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.engine import Engine
from robustfg.attacks.runtime.eval_mode import Model
from robustfg.attacks.runtime.validation import classes_of
from robustfg.attacks.search import Search
from robustfg.attacks.settings import tensor_sha256
from robustfg.attacks.threats.base import Threat, step_length
from robustfg.core.errors import UserError


def fit(
    model: Model,
    batches: Iterable[Sequence[Tensor]],
    *,
    threat: Threat,
    objective: Objective | None = None,
    cap: float = 9.0,
    epochs: int = 10,
    step: str | float = "eps/4",
    engine: Engine | None = None,
) -> Tensor:
    """Learns a perturbation that raises the objective on average, ``(1, C, H, W)``.

    Steepest steps on the mean gradient of one batch after another, in the order given.

    Args:
        model: what is attacked.
        batches: images ``(B, C, H, W)`` in [0, 1], labels ``(B,)`` and whatever else; gone through once an epoch.
        threat: the ball. Changes of a pixel by more than 0.5 are cut.
        objective: None: cross-entropy, as in the paper.
        cap: value from which a sample's objective counts no more, so that few samples do not outweigh the others; the
            paper clips, too.
        epochs: how often; more than one needs batches that can be gone through again, such as a list or a loader.
        step: length of the first step; it falls by the same amount every epoch and would be 0 after the last.
        engine: how the model is run.
    """
    if epochs < 1:
        raise UserError(f"epochs must be >= 1, got {epochs}")
    if epochs > 1 and isinstance(batches, Iterator):
        raise UserError(f"batches can be gone through only once: give a list or a loader for epochs {epochs}")
    objective, engine, change = objective or CrossEntropy(), engine or Engine(), None
    length = step_length(step, threat.reach)
    for epoch in range(epochs):
        images = 0
        for image, label, *_ in batches:
            images += len(image)
            classes = classes_of(image, label)
            with engine.running(model, image, classes=classes, passes=1) as run:
                clean, true = image.detach().clone(), label.detach().clone()
                change = torch.zeros_like(clean[:1]) if change is None else change
                leaf = change.clone().requires_grad_()
                value = objective(run((clean + leaf).clamp(0, 1)), true).clamp_max(cap)
                gradient = gradient_of(value.mean(), leaf).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                grey = torch.full_like(change, 0.5)
                moved = change + length * (1 - epoch / epochs) * threat.steepest(gradient)
                change = threat.project(grey + moved, grey) - grey
        if not images:
            raise UserError(f"batches held no images in epoch {epoch} to learn a universal perturbation on")
    assert change is not None
    return change


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbation(Search):
    """Adds the same perturbation to every image: one forward pass.

    Args:
        path: a file that ``torch.save`` wrote, with what ``fit`` gave.
        perturbation: the same as a tensor, ``(1, C, H, W)``.
    """

    path: str | None = None
    perturbation: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts > 1:
            raise UserError(f"restarts of a fixed perturbation find nothing new, got {self.restarts}")
        if self.perturbation is None:
            if self.path is None:
                raise UserError("path must name the file of a universal perturbation")
            object.__setattr__(self, "perturbation", _read(self.path))
        size = float(self.threat.size(self._change().double()).max())
        if size > self.threat.radius + 1e-6:
            raise UserError(
                f"the universal perturbation has {self.threat.norm} size {size:.4g}, more than epsilon "
                f"{self.threat.epsilon}; learn it within that epsilon"
            )

    @property
    def passes(self) -> int:
        return 1

    def describe(self) -> Mapping[str, object]:
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": 1,
            "restarts": 1,
            "objective": self.decision.name,
            "seed": self.seed,
            "perturbation_sha256": tensor_sha256(self._change().float()),
        }

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """One look."""
        change = self._change()
        if change.shape[1:] != batch.clean.shape[1:]:
            shapes = tuple(change.shape[1:]), tuple(batch.clean.shape[1:])
            raise UserError(f"the universal perturbation was learned for images {shapes[0]}, not {shapes[1]}")
        batch.evaluate(self.threat.project(batch.clean + change.to(batch.clean), batch.clean))

    def _change(self) -> Tensor:
        assert self.perturbation is not None
        return self.perturbation


def _read(path: str) -> Tensor:
    if not Path(path).is_file():
        raise UserError(f"path: there is no universal perturbation at {path}")
    try:
        change = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on a damaged file differs from case to case
        raise UserError(f"path: {path} is no file that torch.save wrote: {error}") from error
    if not isinstance(change, Tensor) or change.dim() != 4 or len(change) != 1 or not change.isfinite().all():
        raise UserError(f"path: {path} does not hold one finite perturbation (1, C, H, W)")
    return change
