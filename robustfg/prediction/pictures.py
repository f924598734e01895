"""Image files decoded as an evaluation decodes them, in batches that may hold failures."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustfg.core.errors import UserError
from robustfg.data.files import read_image
from robustfg.data.samples import Transform, network_input


class Picture(NamedTuple):
    """A file and what came of reading it."""

    path: str
    image: Tensor | None
    """``(3, size, size)`` float32 in [0, 1]; None where reading failed."""
    error: str | None
    """Why reading failed."""


class Pictures(Dataset[Picture]):
    """Files as pictures; an index is a path, so that nobody need know beforehand how many there are.

    Args:
        transform: maps a uint8 image ``(3, H, W)`` to one of the final size.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, path: str) -> Picture:
        if os.path.isdir(path):
            return Picture(path, None, "a folder without images, or one that cannot be read")
        try:
            return Picture(path, network_input(read_image(Path(path)), self.transform), None)
        except UserError as error:
            return Picture(path, None, reason(error.__cause__ or error))
        except (RuntimeError, MemoryError) as error:  # the image is read but too large to be brought to size
            return Picture(path, None, f"cannot be brought to size: {reason(error)}")


def reason(error: BaseException) -> str:
    """What is wrong in a few words: the system's, the first line of the message, or the kind where there is none."""
    if isinstance(error, FileNotFoundError):
        pattern = any(letter in str(error.filename) for letter in "*?[")
        return "no such file; a pattern is expanded by the shell, unquoted" if pattern else "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


class Pile(NamedTuple):
    """Some pictures in a row."""

    paths: list[str]
    images: Tensor
    """``(B, 3, size, size)``, those that could be read, in order; B may be 0."""
    errors: list[str | None]
    """Why reading failed, by path."""


def piled(pictures: list[Picture]) -> Pile:
    """Collates pictures; the readable ones become one tensor."""
    images = [picture.image for picture in pictures if picture.image is not None]
    return Pile(
        [picture.path for picture in pictures],
        torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        [picture.error for picture in pictures],
    )


def loader(
    paths: Iterable[str], transform: Transform, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[Picture]:
    """Piles of pictures in the order of the paths, of which only as many are drawn as the workers read ahead."""
    return DataLoader(
        Pictures(transform),
        batch_size,
        sampler=paths,  # draws indices, and ours are paths
        num_workers=num_workers,
        collate_fn=piled,
        pin_memory=pin_memory,
    )
