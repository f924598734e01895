"""Does the evidence stay on what tells the class when the input is attacked? From the records' columns."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from robustfg.evaluation.aggregation import worst_rows
from robustfg.evaluation.localisation import PLACES
from robustfg.evaluation.records import CLEAN, column
from robustfg.evaluation.regions import BOX, KEYPOINTS, OBJECT, PARTS

Values = NDArray[np.float64]


def attention_of(table: pa.Table, attacks: Iterable[str]) -> dict[str, Any]:
    """Localisation of every map, over four populations.

    ``clean``: every sample, clean. ``before`` and ``attacked``: the samples that are right when clean, on clean input
    and on the worst input that any attack found (the smallest margin). ``broken``: those of them that it fools.

    Returns:
        ``{map: {population: {"n", "dead", region: …}}}``. Per region, over the samples that have it and a live map:
        ``n``; ``mass``, the mean share of the map inside, ``area``, the region's, and their ``ratio``, 1 by chance;
        ``hits`` of the pointing game and ``chance``, its expected share. For ``keypoints``, ``covered`` is the mean
        share of them under the map where it reaches half its maximum, and ``chance_covered`` that of all pixels.
        Empty where no row has a map.
    """
    measures = [name for name in table.column_names if "/" in name]
    clean = worst_rows(table, [CLEAN])
    right = column(table, "correct")[clean]
    worst = worst_rows(table, attacks)
    fooled = right & ~column(table, "correct")[worst]
    sizes = {name: column(table, name)[clean] for name in measures if name.startswith(f"{PLACES}/")}
    found = {}
    for name in dict.fromkeys(measure.split("/")[0] for measure in measures):
        if f"{name}/dead" in measures:  # other columns are no maps
            own = {
                measure.split("/")[1]: column(table, measure) for measure in measures if measure.startswith(f"{name}/")
            }
            populations = {
                "clean": (clean, np.ones_like(right)), "before": (clean, right), "attacked": (worst, right),
                "broken": (worst, fooled),
            }  # fmt: skip
            found[name] = {
                population: _summed(
                    {measure: values[rows[chosen]] for measure, values in own.items()},
                    {measure: values[chosen] for measure, values in sizes.items()},
                )
                for population, (rows, chosen) in populations.items()
            }
    return found


def _summed(measures: Mapping[str, Values], sizes: Mapping[str, Values]) -> dict[str, Any]:
    dead = measures["dead"]
    summed: dict[str, Any] = {"n": len(dead), "dead": int(np.nansum(dead))}
    for region in (PARTS, OBJECT, BOX, KEYPOINTS):
        if f"{region}_hit" in measures:
            summed[region] = _region(region, measures, sizes)
    return summed


def _region(region: str, measures: Mapping[str, Values], sizes: Mapping[str, Values]) -> dict[str, Any]:
    hit = measures[f"{region}_hit"]
    known = ~np.isnan(hit)
    found: dict[str, Any] = {"n": int(known.sum())}
    if not known.any():
        return found
    if f"{region}_mass" in measures:
        mass, area = (
            float(values[known].mean()) for values in (measures[f"{region}_mass"], sizes[f"{PLACES}/{region}_area"])
        )
        found |= {"mass": mass, "area": area, "ratio": mass / area}
    if region == KEYPOINTS:
        found |= {
            "covered": float(measures["keypoints_covered"][known].mean()),
            "chance_covered": float(measures["covered"][known].mean()),
        }
    return found | {"hits": int(hit[known].sum()), "chance": float(sizes[f"{PLACES}/{region}_near"][known].mean())}
