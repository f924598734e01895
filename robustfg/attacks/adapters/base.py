"""What the adapters share: guarding the caller's state, and judging what comes out."""

import hashlib
import random
import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.adapters.lookup import ORDERS, version
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.search import Search
from robustfg.core.errors import UserError

SLACK = 1e-4
"""Beyond this an image lies outside the ball because the library meant it to, not because of float arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Peer(Search):
    """An attack of another library.

    The library gets the images, the labels and a model that hides the user's (``Witness``). What it returns is
    projected to the threat model and judged by one forward pass of ours, whatever success it claims. Its results may
    depend on the batch, as that library's do, and samples that it gives up may come back clean.

    Args:
        options: the library's own settings. Text such as ``eps/4`` or ``2/255`` becomes a number.
    """

    package: ClassVar[str]
    """As it is called by pip."""
    wanted: ClassVar[str] = "'robustfg[peers]'"
    """What pip is asked for where it is missing."""
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine.samples != 1:
            raise UserError(f"engine.samples must be 1 for {self.package}: take its own option for random models")
        if self.threat.norm not in ORDERS:
            raise UserError(f"{self.package} knows the norms {', '.join(ORDERS)}, got {self.threat.norm}")
        if self.options.get("targeted"):
            raise UserError(f"{self.title}: only untargeted attacks; leave out options.targeted")

    @property
    @abstractmethod
    def title(self) -> str:
        """Library and attack, for messages."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps or queries where the library says so, else 0."""

    @abstractmethod
    def craft(self, model: Witness, batch: ActiveBatch, seed: int) -> Tensor:
        """What the library returns: images ``(b, C, H, W)``.

        Args:
            model: to hand over.
            batch: the samples; only read.
            seed: for libraries that want one.
        """

    def describe(self) -> Mapping[str, object]:
        plain = bool, int, float, str, list, tuple, dict, type(None)
        return {
            "norm": self.threat.norm,
            "epsilon": str(self.threat.epsilon),
            "steps": self.steps,
            "restarts": self.restarts,
            "objective": self.title,
            "seed": self.seed,
            "library": f"{self.package} {version(self.package, self.wanted)}",
            "options": {k: v if isinstance(v, plain) else repr(v) for k, v in self.options.items()},
        }

    def settings(self) -> Mapping[str, object]:
        return {**super().settings(), "library": version(self.package, self.wanted)}

    def search(self, batch: ActiveBatch, draws: Draws, restart: int) -> None:
        """Hands the samples to the library and looks at what comes back."""
        if not self.threat.radius:
            batch.evaluate(batch.clean)
            return
        model = Witness(batch.run, batch.clean)
        with kept_state(draws) as seed:
            try:
                found = self.craft(model, batch, seed)
            except ModuleNotFoundError as missing:
                raise UserError(f"{self.title} needs another package: pip install {missing.name}") from missing
            except Exception as error:
                error.add_note(f"while {self.title} ran on {len(batch)} images")
                raise
        found = found.detach().to(batch.clean)
        found = torch.where(found.isfinite(), found, batch.clean)
        batch.count_passes(*model.spent())
        size = self.threat.size(found.double() - batch.clean.double())
        if bool((size > self.threat.radius + SLACK).any()):
            warnings.warn(
                f"images of {self.title} lie outside {self.threat.norm} {self.threat.epsilon}: projected, then judged",
                stacklevel=2,
            )
        batch.evaluate(self.threat.project(found, batch.clean))


@contextmanager
def kept_state(draws: Draws) -> Iterator[int]:
    """Seeds Python's and NumPy's generators, yields a seed; gives both and the trace function back as they were.

    torch's generators are seeded and given back by ``Search``.
    """
    digest = hashlib.blake2b("/".join(map(str, draws.key)).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little") >> 1
    python, numpy, trace = random.getstate(), np.random.get_state(), sys.gettrace()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield seed
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if sys.gettrace() is not trace:  # pyautoattack's check_dynamic ends whatever traces
            sys.settrace(trace)
