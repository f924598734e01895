"""The objective of attacks that want to be believed: a wrong class that the model is sure of."""

from dataclasses import dataclass

from torch import Tensor

from robustfg.attacks.distances import wrong_maximum
from robustfg.types import Output, logits_of


@dataclass(frozen=True)
class WrongConfidence:
    """log max_{k != y} p_k: confidence in a wrong class, as the attack of CCAT maximises it (Stutz et al. 2020).

    The logarithm rises exactly as the probability does, and has a gradient also where that is too small for float32.
    """

    name = "wrong_confidence"

    def __call__(self, output: Output | Tensor, label: Tensor) -> Tensor:
        return wrong_maximum(logits_of(output).log_softmax(1), label)
