"""The usual names: short ways to the attacks that are settings of the gradient attack.

``PGD(epsilon="8/255", steps=10)(model, images, labels)`` is all a script needs.
"""

from robustfg.attacks.gradient.pgd import GradientAttack
from robustfg.attacks.gradient.step_rules import Momentum, Steepest
from robustfg.attacks.objectives.logits import CrossEntropy, Margin, Objective
from robustfg.attacks.threats.base import Threat
from robustfg.attacks.threats.lp import L1, L2, Linf
from robustfg.core.errors import UserError, options_by_name

NORMS: dict[str, type[Threat]] = {"linf": Linf, "l2": L2, "l1": L1}


def ball(norm: str, epsilon: str | float) -> Threat:
    """The ball of a norm by its name: ``linf``, ``l2`` or ``l1``."""
    if norm not in NORMS:
        raise UserError(f"norm must be one of {', '.join(NORMS)}, got {norm}")
    return NORMS[norm](epsilon=epsilon)


@options_by_name
def PGD(  # noqa: N802
    *,
    epsilon: str | float = "8/255",
    norm: str = "linf",
    steps: int = 20,
    step_size: str | float = "eps/4",
    objective: Objective | None = None,
    random_start: bool = True,
    restarts: int = 1,
    last_iterate: bool = False,
    seed: int = 0,
) -> GradientAttack:
    """Projected gradient descent (Madry et al. 2018), by default on the margin with the worst iterate kept.

    Example:
        >>> import torch
        >>> from robustfg.attacks import PGD
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
        >>> PGD(epsilon="8/255", steps=10)(model, torch.rand(2, 3, 8, 8), torch.tensor([0, 1])).shape
        torch.Size([2, 3, 8, 8])
    """
    return GradientAttack(
        name="pgd", threat=ball(norm, epsilon), step=Steepest(size=step_size), steps=steps,
        objective=objective or Margin(), random_start=random_start, restarts=restarts, last_iterate=last_iterate,
        seed=seed,
    )  # fmt: skip


@options_by_name
def FGSM(*, epsilon: str | float = "8/255", norm: str = "linf") -> GradientAttack:  # noqa: N802
    """One step to the border of the ball on the cross-entropy (Goodfellow et al. 2015)."""
    return GradientAttack(
        name="fgsm", threat=ball(norm, epsilon), step=Steepest(size="eps"), steps=1, objective=CrossEntropy(),
        last_iterate=True,
    )  # fmt: skip


@options_by_name
def BIM(*, epsilon: str | float = "8/255", norm: str = "linf", steps: int = 10) -> GradientAttack:  # noqa: N802
    """Small steps from the clean image on the cross-entropy (Kurakin et al. 2017)."""
    return GradientAttack(
        name="bim", threat=ball(norm, epsilon), step=Steepest(size=f"eps/{steps}"), steps=steps,
        objective=CrossEntropy(),
    )  # fmt: skip


@options_by_name
def MIM(*, epsilon: str | float = "8/255", norm: str = "linf", steps: int = 10) -> GradientAttack:  # noqa: N802
    """BIM with momentum (Dong et al. 2018)."""
    return GradientAttack(
        name="mim", threat=ball(norm, epsilon), step=Momentum(size=f"eps/{steps}"), steps=steps,
        objective=CrossEntropy(),
    )  # fmt: skip
