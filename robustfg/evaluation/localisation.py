"""How well a map of evidence points at what is annotated: numbers per sample."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfg.evaluation.regions import KEYPOINTS, Regions
from robustfg.models.attention import is_dead

THRESHOLD = 0.5
"""A map covers the positions where it reaches this share of its maximum."""
PLACES = "places"
"""Where the sizes of the regions stand among the names of maps."""


@torch.no_grad()
def localise(maps: Mapping[str, Tensor], regions: Regions) -> dict[str, Tensor]:
    """Numbers ``(B,)`` in float64 named ``map/measure``; NaN where a map is dead or the image lacks the region.

    - ``dead``: 1 for a map that is nowhere positive or not finite.
    - ``<region>_mass``: share of the map's sum inside the region.
    - ``<region>_hit``: 1 where the map's maximum, the centre of its best cell, is in the region or near it.
    - ``keypoints_covered``: share of the visible keypoints where the map reaches ``THRESHOLD`` of its maximum, and
      ``covered``, the share of all pixels where it does.

    Maps are brought to image size bilinearly.

    Args:
        maps: ``(B, h, w)`` by name; those of a single position are left out.
        regions: of the same samples.
    """
    found: dict[str, Tensor] = {}
    for name, cells in maps.items():
        if cells[0].numel() > 1:
            found |= {f"{name}/{measure}": values for measure, values in _measure(cells, regions).items()}
    return found


def sizes(regions: Regions) -> dict[str, Tensor]:
    """What a map that knows nothing would score, ``(B,)``.

    ``places/<region>_area`` and ``places/<region>_near`` are the shares of the image that the region and its
    neighbourhood take; NaN where the image lacks it.
    """
    areas = {f"{PLACES}/{name}_area": _share(mask) for name, mask in regions.masks.items()}
    return areas | {f"{PLACES}/{name}_near": _share(mask) for name, mask in regions.near.items()}


def _measure(cells: Tensor, regions: Regions) -> dict[str, Tensor]:
    cells = cells.double()
    dead = is_dead(cells)
    found = {"dead": dead.double()}
    if not regions.near:
        return found
    cells = torch.where(dead[:, None, None], 0.0, cells).clamp_min(0)
    size = next(iter(regions.near.values())).shape[1:]
    pixels = F.interpolate(cells[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
    total, (row, column) = pixels.sum((1, 2)), _peak(cells, size)
    for name, mask in regions.masks.items():
        found[f"{name}_mass"] = _known((pixels * mask).sum((1, 2)) / total, dead, mask)
    every = torch.arange(len(cells), device=cells.device)
    for name, near in regions.near.items():
        found[f"{name}_hit"] = _known(near[every, row, column].double(), dead, near)
    if regions.keypoints is not None:
        covers = pixels >= THRESHOLD * pixels.amax((1, 2), keepdim=True)
        seen = (regions.keypoints >= 0).all(2)
        at = regions.keypoints.clamp_min(0)
        reached = covers[every[:, None], at[..., 0], at[..., 1]] & seen
        shown = regions.near[KEYPOINTS]
        found["keypoints_covered"] = _known(reached.sum(1) / seen.sum(1).double(), dead, shown)
        found["covered"] = _known(covers.double().mean((1, 2)), dead, shown)
    return found


def _peak(cells: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """The pixel at the centre of the best cell of every map."""
    height, width = cells.shape[1:]
    best = cells.flatten(1).argmax(1)
    row, column = best // width, best % width
    return (2 * row + 1) * size[0] // (2 * height), (2 * column + 1) * size[1] // (2 * width)


def _share(mask: Tensor) -> Tensor:
    """How much of the image a region takes, ``(B,)``; NaN where it is empty."""
    share = mask.double().mean((1, 2))
    return torch.where(share > 0, share, torch.nan)


def _known(values: Tensor, dead: Tensor, region: Tensor) -> Tensor:
    return torch.where(dead | ~region.any(2).any(1), torch.nan, values)
