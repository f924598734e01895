"""Drawn birds that are not among the known ones: further species of known genera, and further genera."""

from robustfg.core.errors import UserError
from robustfg.data.birds import PAIRS_OF_LOOKS, PALETTES, POSTURES, Birds, BirdSplit, species_of
from robustfg.data.source import Source

GENERA = len(POSTURES) * len(PALETTES)


class UnknownSpecies:
    """Near: birds of known genera and unknown species, which differ from the known ones in one or two parts.

    Args:
        known: the birds that the classifier knows, given by the program; pictures are drawn in the same style.
        species_per_genus: unknown species of every known genus, those that follow the known ones.
        images: how many.
    """

    def __init__(self, *, known: Source, species_per_genus: int = 4, images: int = 480) -> None:
        birds = _birds(known, images)
        first, left = birds.species_per_genus, len(PAIRS_OF_LOOKS) - birds.species_per_genus
        if not 1 <= species_per_genus <= left:
            raise UserError(
                f"unknown.birds_near.species_per_genus must be in [1, {left}], since {first} of {first + left} species "
                f"of a genus are known, got {species_per_genus}"
            )
        genera = [species_of(genus, first + species_per_genus) for genus in range(birds.num_genera)]
        species = [unknown for genus in genera for unknown in genus[first:]]
        self.classes = tuple(unknown.name for unknown in species)
        self.images: BirdSplit = birds.drawn("unknown species", images, species)


class UnknownGenera:
    """Far: birds of unknown genera, which differ from the known ones in posture, colours or both.

    Args:
        known: as of ``UnknownSpecies``.
        num_genera: unknown genera, those that follow the known ones.
        species_per_genus: species of each.
        images: how many.
    """

    def __init__(self, *, known: Source, num_genera: int = 4, species_per_genus: int = 4, images: int = 480) -> None:
        birds = _birds(known, images)
        first, left = birds.num_genera, GENERA - birds.num_genera
        for option, value, most in (
            ("num_genera", num_genera, left),
            ("species_per_genus", species_per_genus, len(PAIRS_OF_LOOKS)),
        ):
            if not 1 <= value <= most:
                raise UserError(f"unknown.birds_far.{option} must be in [1, {most}], got {value}")
        genera = range(first, first + num_genera)
        species = [unknown for genus in genera for unknown in species_of(genus, species_per_genus)]
        self.classes = tuple(unknown.name for unknown in species)
        self.images: BirdSplit = birds.drawn("unknown genera", images, species)


def _birds(known: Source, images: int) -> Birds:
    if not isinstance(known, Birds):
        raise UserError(
            "unknown=birds_near and unknown=birds_far need data=birds; choose unknown=folder or another set"
        )
    if images < 1:
        raise UserError(f"unknown: images must be >= 1, got {images}")
    return known
