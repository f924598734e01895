"""The gradient attack: FGSM, BIM, MIM and PGD are four settings of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from robustfg.attacks.batch.active_batch import ActiveBatch, SearchOptions
from robustfg.attacks.batch.input_gradient import Change, unchanged
from robustfg.attacks.gradient.ascent import Ascent
from robustfg.attacks.gradient.input_transforms import Smoothing, Transform
from robustfg.attacks.gradient.step_rules import Steepest, StepRule
from robustfg.attacks.rng.streams import Draws


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Ascent):
    """Projected gradient ascent on an objective, inside a threat model (Madry et al. 2018).

    The worst iterate is kept, judged by the decision margin, and a sample that is fooled takes no further steps.

    Args:
        step: the step rule.
        random_start: start at a point drawn uniformly from the ball; otherwise at the clean image. With several
            restarts and no random start the first begins at the clean image and the others at random.
        last_iterate: return the last iterate whether or not an earlier one was worse, as much published code does. It
            is not evaluated, which saves a forward pass.
        seen_as: a random change of the images before the model sees them, such as DI's (transfer attacks).
        smoothing: convolves the gradient, as TI does (transfer attacks).

    Example:
        >>> import torch
        >>> from robustfg.attacks import GradientAttack, Linf, Steepest
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
        >>> images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
        >>> attack = GradientAttack(threat=Linf(epsilon="8/255"), step=Steepest(size="2/255"), steps=10)
        >>> adversarial = attack(model, images, labels)
        >>> bool((adversarial - images).abs().max() <= 8 / 255 + 1e-6)
        True
    """

    step: StepRule = field(default_factory=lambda: Steepest(size="eps/4"))
    random_start: bool = False
    last_iterate: bool = False
    seen_as: Transform | None = None
    smoothing: Smoothing | None = None

    def describe(self) -> Mapping[str, object]:
        transfer = {"seen_as": self.seen_as, "smoothing": self.smoothing}
        return {
            **super().describe(),
            "step_rule": type(self.step).__name__.lower(),
            **{f"step_{option}": str(value) for option, value in vars(self.step).items()},
            "random_start": self.random_start,
            "last_iterate": self.last_iterate,
            **{option: repr(value) for option, value in transfer.items() if value is not None},
        }

    @property
    def passes(self) -> int:
        return self.rounds * (self.steps + (not self.last_iterate)) + self.looks_before

    @property
    def search_options(self) -> SearchOptions:
        return SearchOptions(keep_fooled=self.last_iterate)

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Climbs from the start; the samples that are fooled leave unless the last iterate counts."""
        target, memory = self.aim(batch, restart), None
        if not len(batch):
            return
        current = self.random_image(batch, draws) if self.random_start or self.again(restart) else batch.clean
        threat = self.threat.placed(batch.clean, batch.index, *draws.key)
        project = threat.projector(batch.clean, once=self.steps == 1)
        for taken in range(self.steps):
            shown = self.step.ahead(current, memory, threat)
            seen_as: Change | None = None if shown is current else unchanged
            if self.seen_as is not None:
                seen_as = self.seen_as.drawn(draws, batch.index, taken)
            gradient = batch.gradient(shown, self.towards(batch, target), seen_as=seen_as).gradient
            if self.smoothing is not None:
                gradient = self.smoothing(gradient)
            moved, memory = self.step(current, gradient, memory, threat)
            current, standing = project(moved), len(batch)
            current, memory, target = batch.drop_fooled(current, memory, target)
            if not len(batch):
                return
            if len(batch) < standing:
                threat = self.threat.placed(batch.clean, batch.index, *draws.key)
                project = threat.projector(batch.clean)
        if self.last_iterate:
            batch.set_result(current)
        else:
            batch.evaluate(current)
