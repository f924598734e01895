"""The built-in data set: drawn birds whose species differ, within a genus, in one or two small parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from robustfg.data.annotations import Taxonomy
from robustfg.data.birds_drawing import Colour, Dice, Outline, Scene, Shape, arc, compose, masks, paint, polygon

Look = tuple[tuple[Outline, Colour], ...]  # of one part, from back to front

POSTURES = (  # the body's length, height and tilt in degrees; the head's x, y and radius; the body's centre is (0, 0)
    (0.36, 0.28, -20, 0.25, -0.27, 0.21),
    (0.38, 0.22, -52, 0.20, -0.38, 0.19),
    (0.42, 0.21, -4, 0.38, -0.20, 0.18),
    (0.38, 0.25, -8, 0.36, -0.44, 0.17),
    (0.32, 0.24, -38, 0.21, -0.26, 0.24),
)
PALETTES: tuple[tuple[Colour, Colour, Colour], ...] = (  # back and head, wing, belly
    ((70, 110, 170), (40, 64, 120), (216, 190, 150)),
    ((150, 98, 52), (98, 62, 36), (232, 210, 170)),
    ((96, 140, 70), (54, 92, 52), (226, 216, 120)),
    ((128, 128, 136), (78, 78, 88), (212, 212, 214)),
    ((190, 84, 60), (120, 52, 48), (236, 196, 170)),
    ((60, 56, 70), (36, 34, 46), (150, 146, 156)),
    ((206, 170, 70), (140, 104, 44), (240, 232, 190)),
    ((60, 140, 140), (36, 92, 100), (206, 226, 216)),
    ((140, 90, 150), (88, 56, 104), (222, 200, 226)),
)
BLACK, WHITE, CREAM, RED = (34, 30, 36), (242, 240, 232), (236, 216, 170), (196, 42, 40)
ORANGE, YELLOW, BLUE, HORN = (230, 124, 36), (240, 200, 56), (52, 92, 190), (70, 62, 60)
_CHEST, _CAP, _RING = arc(-45, 85), arc(178, 352), arc(0, 345, 0.25, -0.05, 0.62)
_HOOD = np.concatenate([_CAP, polygon((0.6, -0.45), (-0.7, -0.4))])
_CREST = polygon((-0.95, -0.2), (-1.4, -1.2), (-0.7, -1.0), (-0.5, -1.7), (0.1, -1.1), (0.9, -0.4))
_STRIPE = polygon((0.06, -0.5), (0.42, -0.28), (0.12, 0.54), (-0.34, 0.46))
_SPOTS = tuple((arc(0, 300, x, y, 0.15), BLACK) for x, y in ((0.62, -0.3), (0.78, 0.1), (0.42, 0.1), (0.56, 0.5)))

# Four looks for every part. The first three parts are outlined in a frame where the body is the unit circle, the others
# in one where the head is.
LOOKS: dict[str, tuple[Look, ...]] = {
    "tail": (
        ((polygon((-0.8, -0.35), (-1.75, -0.45), (-1.75, 0.45), (-0.8, 0.4)), BLACK),),
        ((polygon((-0.8, -0.3), (-2.1, -0.8), (-1.5, 0), (-2.1, 0.8), (-0.8, 0.3)), WHITE),),
        ((polygon((-0.8, -0.2), (-1.6, -0.95), (-1.85, 0), (-1.6, 0.95), (-0.8, 0.2)), RED),),
        ((polygon((-0.8, -0.4), (-1.9, -0.25), (-2.3, 0), (-1.9, 0.25), (-0.8, 0.4)), YELLOW),),
    ),
    "breast": (((_CHEST, CREAM), *_SPOTS), ((_CHEST, RED),), ((_CHEST, BLACK),), ((_CHEST, YELLOW),)),
    "wing_bar": tuple(((_STRIPE, colour),) for colour in (WHITE, RED, YELLOW, BLACK)),
    "beak": (
        ((polygon((0.6, -0.65), (1.9, 0.15), (0.6, 0.8)), ORANGE),),
        ((polygon((0.7, -0.4), (2.5, 0.1), (0.7, 0.55)), BLACK),),
        ((polygon((0.6, -0.6), (1.5, -0.45), (2.0, 0.2), (1.85, 1.0), (1.3, 0.55), (0.6, 0.65)), YELLOW),),
        ((polygon((0.7, -0.45), (2.0, -0.25), (2.25, 0.5), (0.7, 0.7)), BLUE),),
    ),
    "crown": (((_CAP, BLACK),), ((_HOOD, RED),), ((_HOOD, WHITE),), ((_CREST, YELLOW),)),
    "eye_ring": tuple(((_RING, colour),) for colour in (WHITE, ORANGE, BLUE, BLACK)),
}
VARYING = (  # the two parts that tell the species of a genus apart; genera take turns
    ("crown", "wing_bar"),
    ("tail", "breast"),
    ("beak", "wing_bar"),
    ("breast", "eye_ring"),
    ("tail", "crown"),
    ("beak", "breast"),
)
# (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), ...: few species need few looks, and any two differ in one part or in both.
PAIRS_OF_LOOKS = sorted(product(range(4), repeat=2), key=max)
STEMS = ("Alc", "Bren", "Cor", "Dal", "Fring", "Gar", "Lan", "Mer", "Sit")
ENDINGS = ("ella", "aria", "ura", "ina", "icola")
EPITHETS = (
    *("alba", "borealis", "cana", "decora", "elegans", "fulva", "gracilis", "hilaris"),
    *("insularis", "lunata", "modesta", "nobilis", "ornata", "picta", "rustica", "silvana"),
)


@dataclass(frozen=True)
class Species:
    """A class of the data set."""

    name: str
    genus: str
    shapes: tuple[Shape, ...]  # from back to front, facing right, the body's centre at (0, 0)
    deciding_parts: tuple[str, ...]


def species_of(genus: int, count: int) -> list[Species]:
    """The first ``count`` species of a genus; neither their names nor their looks depend on how many there are."""
    name = STEMS[genus % len(STEMS)] + ENDINGS[genus % len(ENDINGS)]
    back, wing, belly = PALETTES[genus % len(PALETTES)]
    quiet = {"tail": wing, "breast": belly, "wing_bar": belly, "beak": HORN, "crown": wing, "eye_ring": belly}
    common: dict[str, Look] = {part: ((looks[genus % 4][0][0], quiet[part]),) for part, looks in LOOKS.items()}
    varying = VARYING[genus % len(VARYING)]
    pairs = PAIRS_OF_LOOKS[:count]
    deciding = tuple(part for part, looks in zip(varying, zip(*pairs, strict=True), strict=True) if len(set(looks)) > 1)
    species = []
    for epithet, pair in zip(EPITHETS, pairs, strict=False):
        own = {part: LOOKS[part][(genus + look) % 4] for part, look in zip(varying, pair, strict=True)}
        shapes = _portrait(genus, back, wing, belly, common | own)
        species.append(Species(f"{name}_{epithet}", name, shapes, deciding))
    return species


def _portrait(genus: int, back: Colour, wing: Colour, belly: Colour, look: dict[str, Look]) -> tuple[Shape, ...]:
    length, height, tilt, x, y, radius = POSTURES[genus % len(POSTURES)]
    cosine, sine = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    body_frame = np.array([[length * cosine, length * sine], [-height * sine, height * cosine]])

    def on_body(part: str, *pieces: tuple[Outline, Colour]) -> list[Shape]:
        return [Shape(outline @ body_frame, colour, part) for outline, colour in pieces]

    def on_head(part: str, *pieces: tuple[Outline, Colour]) -> list[Shape]:
        return [Shape(outline * radius + (x, y), colour, part) for outline, colour in pieces]

    head = np.array([x, y])
    across = np.array([-y, x]) / np.hypot(x, y)
    below, above = 0.8 * height * across, 0.9 * radius * across
    neck = np.array([below, -below, head - above, head + above])
    legs = [polygon((s, 0.1), (s + 0.03, 0.1), (s + 0.03, 0.5), (s, 0.5)) for s in (-0.06, 0.07)]
    feather = polygon((0.45, -0.3), (0.1, -0.55), (-0.5, -0.45), (-1.25, 0.0), (-0.6, 0.4), (0.1, 0.55), (0.4, 0.2))
    return (
        *on_body("tail", *look["tail"]),
        *(Shape(leg, BLACK, "leg") for leg in legs),
        *on_body("body", (arc(0, 345), back)),
        Shape(neck, back, "body"),
        *on_body("belly", (arc(20, 165), belly)),
        *on_body("breast", *look["breast"]),
        *on_head("head", (arc(0, 345), back)),
        *on_body("wing", (feather, wing)),
        *on_body("wing_bar", *look["wing_bar"]),
        *on_head("beak", *look["beak"]),
        *on_head("crown", *look["crown"]),
        *on_head("eye_ring", *look["eye_ring"]),
        *on_head("eye", (arc(0, 330, 0.28, -0.05, 0.22), BLACK), (arc(0, 300, 0.36, -0.12, 0.07), WHITE)),
    )


class BirdSplit:
    """One split of ``Birds``; a sample depends on (seed, split, position) alone, not on how many there are."""

    def __init__(
        self, name: str, count: int, *, species: Sequence[Species], image_size: int, difficulty: float, seed: int
    ) -> None:
        self._name, self._species, self._seed = name, species, seed
        self._image_size, self._difficulty = image_size, difficulty
        self.labels = np.array([self._label(position) for position in range(count)], dtype=np.int64)
        self.keys = tuple(f"{name}/{position:06d}" for position in range(count))

    def image(self, position: int) -> NDArray[np.uint8]:
        """The image at ``position``, shape ``(image_size, image_size, 3)``, RGB."""
        return paint(self._shapes(position), self._scene(position), self._image_size)

    def parts(self, position: int) -> dict[str, NDArray[np.bool_]]:
        """Where each visible part of the bird is seen: masks ``(image_size, image_size)`` that do not overlap."""
        return masks(self._shapes(position), self._scene(position), self._image_size)

    def _label(self, position: int) -> int:
        """Every run of as many samples as there are classes holds each class once, in an order of its own."""
        turn, place = divmod(position, len(self._species))
        order = np.argsort(Dice(self._seed, self._name, "labels", turn).uniforms(len(self._species)))
        return int(order[place])

    def _shapes(self, position: int) -> tuple[Shape, ...]:
        return self._species[int(self.labels[position])].shapes

    def _scene(self, position: int) -> Scene:
        return compose(Dice(self._seed, self._name, "scene", position), self._difficulty)


class Birds:
    """Drawn birds, a pure function of the options: the same images on every machine.

    A genus fixes posture and colours; its species differ in the look of one or two parts, which ``deciding_parts``
    names for every class.

    Args:
        num_genera: up to 45.
        species_per_genus: up to 16.
        image_size: height and width in pixels, at least 24; the scenes do not depend on it.
        difficulty: from 0, clear portraits, to 1; pose, scale, place, light, clutter and occlusion vary with it.
        train: number of training images.
        test: number of test images.
        seed: another seed gives other scenes of the same species.
    """

    def __init__(
        self,
        *,
        num_genera: int = 4,
        species_per_genus: int = 4,
        image_size: int = 48,
        difficulty: float = 0.6,
        train: int = 2400,
        test: int = 480,
        seed: int = 0,
    ) -> None:
        for option, value, lowest, highest in (
            ("num_genera", num_genera, 1, len(POSTURES) * len(PALETTES)),
            ("species_per_genus", species_per_genus, 1 if num_genera > 1 else 2, len(PAIRS_OF_LOOKS)),
            ("image_size", image_size, 24, math.inf),
            ("difficulty", difficulty, 0, 1),
            ("train", train, 1, math.inf),
            ("test", test, 1, math.inf),
        ):
            if not lowest <= value <= highest:
                bounds = f">= {lowest}" if highest == math.inf else f"in [{lowest}, {highest}]"
                raise ValueError(f"data.source.{option} must be {bounds}, got {value}")

        self.num_genera, self.species_per_genus = num_genera, species_per_genus
        species = [s for genus in range(num_genera) for s in species_of(genus, species_per_genus)]
        self.classes = tuple(s.name for s in species)
        self.genera: tuple[str, ...] | None = tuple(s.genus for s in species)
        self.taxonomy: Taxonomy = {"genus": self.genera}
        self.deciding_parts = tuple(s.deciding_parts for s in species)
        self.origin = f"birds, seed {seed}, difficulty {difficulty:g}, {image_size} pixels"
        self._drawn = partial(BirdSplit, image_size=image_size, difficulty=difficulty, seed=seed)
        self.train = self.drawn("train", train, species)
        self.test = self.drawn("test", test, species)
        self.val = None

    def drawn(self, name: str, count: int, species: Sequence[Species]) -> BirdSplit:
        """Another split in the same style; ``name`` separates its scenes from the others'."""
        return self._drawn(name, count, species=species)
