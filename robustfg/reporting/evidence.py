"""The fine-grained evidence of a summary, in words and rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from robustfg.reporting.embedding import calibration_lines, embedding_lines

Row = tuple[str, ...]
Summary = Mapping[str, Any]

REGIONS = {"parts": "parts that tell the class", "object": "object", "box": "box", "keypoints": "keypoints"}
NAMES = {"cam": "class-activation map"}
POPULATIONS = {
    "clean": "clean, all",
    "before": "clean, those attacked",
    "attacked": "attacked",
    "broken": "attacked with success",
}


def evidence_lines(summary: Summary) -> dict[str, list[str]]:
    """Lines on every block by its heading, for the terminal; blocks that were not measured are left out."""
    told = {
        "Errors by taxonomy": list(_taxonomy_lines(summary)),
        "Where the evidence lies": list(_attention_lines(summary)),
        "Latent separation": list(_separation_lines(summary)),
        "Feature space": embedding_lines(summary),
        "Calibration": calibration_lines(summary),
    }
    return {heading: lines for heading, lines in told.items() if lines}


def taxonomy_rows(summary: Summary) -> list[Row]:
    """Level, what, errors, inside the group, share, share if errors were spread evenly, accuracy over groups."""
    return [
        (level, name.replace("_", " "), str(found["errors"]), str(found["inside"]), _percent(found["share_inside"]),
         _percent(found["expected_inside"]), _percent(found["held"]["accuracy"]))
        for level, parts in (summary.get("taxonomy") or {}).items()
        for name, found in parts.items()
    ]  # fmt: skip


def attention_rows(summary: Summary) -> list[Row]:
    """Map, region, input, samples, share inside with its ratio to chance, maximum on it and by chance."""
    return [
        (name, REGIONS[region], POPULATIONS[population], str(found["n"]), _inside(found), _percent(_hit_rate(found)),
         _percent(found.get("chance")))
        for name, populations in (summary.get("attention") or {}).items()
        for region in REGIONS
        for population, parts in populations.items()
        if (found := parts.get(region))
    ]  # fmt: skip


def dead_rows(summary: Summary) -> list[Row]:
    """Map, input, dead maps."""
    return [
        (name, POPULATIONS[population], f"{parts['dead']} of {parts['n']}")
        for name, populations in (summary.get("attention") or {}).items()
        for population, parts in populations.items()
    ]


def genus_rows(summary: Summary) -> list[Row]:
    """Genus, classes with a separation over 1, smallest and median separation, classes nearest to one of their own."""
    return [
        (name, f"{found['separated']} of {found['n']}", _plain(found["smallest"]), _plain(found["median"]),
         f"{found['nearest_inside']} ({found['expected_nearest_inside']:.1f} by chance)")
        for name, found in ((summary.get("separation") or {}).get("groups") or {}).items()
    ]  # fmt: skip


def class_rows(summary: Summary) -> list[Row]:
    """Class, nearest class, distance of their centres, spread, radius, nearest intruder, separation; worst first."""
    classes = (summary.get("separation") or {}).get("classes") or {}
    worst_first = sorted(classes.items(), key=lambda item: (item[1]["separation"] is None, item[1]["separation"]))
    numbers = ("centre_distance", "spread", "radius", "intruder", "separation")
    return [(name, found["nearest"] or "–", *(_plain(found[key]) for key in numbers)) for name, found in worst_first]


def _taxonomy_lines(summary: Summary) -> Iterator[str]:
    for level, parts in (summary.get("taxonomy") or {}).items():
        told = [
            f"{text} {parts[name]['inside']} of {parts[name]['errors']} "
            f"({_percent(parts[name]['expected_inside'])} by chance)"
            for name, text in (("clean", "clean"), ("worst_case", "worst case"))
            if parts[name]["errors"]
        ]
        if told:
            yield f"Errors inside the {level}: {', '.join(told)}."


def _attention_lines(summary: Summary) -> Iterator[str]:
    for name, populations in (summary.get("attention") or {}).items():
        before, after = populations["before"], populations["attacked"]
        told = [
            f"on the {REGIONS[region]} {_score(before[region])} clean, {_score(after[region])} attacked"
            for region in REGIONS
            if before.get(region, {"n": 0})["n"] and after[region]["n"]
        ]
        dead = f"dead maps {before['dead']} of {before['n']} clean, {after['dead']} of {after['n']} attacked"
        yield f"Map {titled(name)}: {'; '.join([*told, dead])}."


def titled(name: str) -> str:
    """A map's name, spelt out where it is short for something."""
    return f"{name!r} ({NAMES[name]})" if name in NAMES else repr(name)


def has_keypoints(summary: Summary) -> bool:
    """Whether keypoints are known and were looked at."""
    return any("keypoints" in parts for block in summary["attention"].values() for parts in block.values())


def _separation_lines(summary: Summary) -> Iterator[str]:
    if found := summary.get("separation"):
        yield separated(found)
        yield correlations(found)


def separated(separation: Mapping[str, Any]) -> str:
    """How many classes are apart from all others, and how many could not be looked at, in sentences."""
    n, left_out = separation["n"], len(separation["classes"]) - separation["n"]
    without = f" {left_out} left out: fewer than two samples that differ." if left_out else ""
    if not n:
        return "Whether classes are apart cannot be told: none has two samples that differ."
    return (
        f"{separation['separated']} of {n} classes are apart from all others: a ball around the mean holds all samples "
        f"of the class and no other.{without} More samples make that stricter."
    )


def correlations(separation: Mapping[str, Any]) -> str:
    """Whether attacks succeed where classes lie close, in a sentence."""
    samples, pairs = (separation["attacks"][over] for over in ("samples", "pairs"))
    told = []
    if samples["rho"] is not None:
        interval = " [{:.2f}, {:.2f}]".format(*samples["ci95"]) if samples["ci95"] else ""
        told.append(f"{samples['rho']:.2f}{interval} over {samples['n']} samples")
    if pairs["rho"] is not None:
        told.append(f"{pairs['rho']:.2f} (p {pairs['p']:.3f}) over {pairs['n']} pairs of classes")
    if not told:
        return "Closeness cannot be compared with attack success, which does not vary."
    return f"Closeness and attack success, Spearman's rho: {' and '.join(told)}."


def _score(found: Mapping[str, Any]) -> str:
    if "covered" in found:
        return f"{_percent(found['covered'])} covered ({_percent(found['chance_covered'])} of all pixels)"
    return f"{found['ratio']:.1f}× chance"


def _inside(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return "–"
    if "covered" in found:
        return f"{_percent(found['covered'])} covered, {_percent(found['chance_covered'])} of all pixels"
    return f"{_percent(found['mass'])}, {found['ratio']:.2f}× chance"


def _hit_rate(found: Mapping[str, Any]) -> float | None:
    return found["hits"] / found["n"] if found["n"] else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
