"""What a check of the evaluation itself reports."""

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """A test of the evaluation that could have failed."""

    name: str
    status: Status
    count: int
    """Samples that speak against the evaluation."""
    n: int
    """Samples looked at."""
    detail: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)
