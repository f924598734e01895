"""How many samples are attacked before what was found is written down."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robustfg.attacks import Attack
from robustfg.attacks.rng.philox import keyed_generators
from robustfg.attacks.runtime.eval_mode import Model

CPU_WORK, GPU_WORK = 1e11, 2e14
"""Floating-point operations between two commits, a CPU's by thread: about ten seconds on slow hardware."""
CPU_LEAST, GPU_LEAST = 4, 128
"""Samples that are attacked together however long that takes, a CPU's by thread: fewer leave the hardware idle."""
CPU_PASS, GPU_PASS = 5e8, 1e10
"""Operations of a forward pass below which starting its parts takes longer than they do."""


@dataclass(frozen=True)
class Pace:
    """A killed evaluation loses the portion it was at, so a portion must end soon.

    Its size follows from the model, the attack and the hardware and never from a clock: an evaluation that is continued
    attacks the same samples together as one that ran through, and finds the same to the last bit.

    Args:
        passes: forward passes of one image between two commits.
        least: samples of a portion at the least.
    """

    passes: float = float("inf")
    least: int = 1

    @classmethod
    def of(cls, model: Model, image: Tensor) -> "Pace":
        """The pace for a model; without bounds where its operations cannot be counted.

        Args:
            model: in eval mode.
            image: ``(B, C, H, W)``, at least one.
        """
        if not len(image):
            return cls()
        try:
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), keyed_generators(image.device, "pace"), counter:
                model(image[:1])
            operations = counter.get_total_flops()
        except Exception:  # what a stranger's module does under another mode is unknown, and only speed is at stake
            return cls()
        threads = torch.get_num_threads()
        on_cpu = image.device.type == "cpu"
        work, least = (CPU_WORK * threads, CPU_LEAST * threads) if on_cpu else (GPU_WORK, GPU_LEAST)
        least = max(least, math.ceil((CPU_PASS if on_cpu else GPU_PASS) / max(operations, 1)))
        return cls(work / max(operations, 1), least)

    def portion(self, attack: Attack, restart: int) -> int:
        """How many samples go through a round of an attack together; a backward pass is taken for two forward ones."""
        return int(max(self.least, min(self.passes / (3 * attack.passes_in(restart)), 2**31)))
