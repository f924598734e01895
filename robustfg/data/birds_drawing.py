"""How the built-in birds are drawn: the scene around a bird, and the picture of both."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Outline = NDArray[np.float64]  # (N, 2) corners of a polygon; x to the right, y down
T = TypeVar("T")

SUPERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    """A polygon of one colour, and the bird's part it belongs to."""

    outline: Outline
    colour: Colour
    part: str = ""


def polygon(*corners: tuple[float, float]) -> Outline:
    """A polygon from its corners."""
    return np.array(corners)


def arc(first: float, last: float, x: float = 0.0, y: float = 0.0, radius: float = 1.0) -> Outline:
    """Corners on a circle from one angle to another, in degrees; 0 is forward, 90 down."""
    angle = np.radians(np.linspace(first, last, 2 + int(abs(last - first) / 15)))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


BACKDROPS: tuple[tuple[float, tuple[Colour, ...]], ...] = (  # how flat the blobs are, then the ground and their colours
    (0.35, ((150, 196, 232), (176, 214, 240), (232, 240, 246), (206, 226, 242))),  # sky
    (0.80, ((74, 116, 62), (52, 92, 48), (104, 148, 74), (134, 168, 92))),  # foliage
    (0.12, ((84, 142, 168), (64, 118, 150), (120, 176, 196), (150, 198, 210))),  # water
    (0.25, ((178, 172, 96), (152, 158, 78), (204, 190, 120), (132, 140, 70))),  # meadow
    (0.45, ((196, 150, 138), (216, 170, 140), (168, 128, 140), (232, 192, 150))),  # dusk
)
LEAVES: tuple[Colour, ...] = ((48, 96, 44), (86, 134, 54), (122, 120, 48), (150, 96, 44))
_LEAF = polygon((1, 0), (0.5, 0.3), (0, 0.38), (-0.5, 0.26), (-1, 0), (-0.5, -0.26), (0, -0.38), (0.5, -0.3))
_TWIG = polygon((1, 1), (-1, 1), (-1, -1), (1, -1))
BARK: Colour = (92, 70, 54)


class Dice:
    """Random numbers that depend on the words of the key alone, and are the same on every machine."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers in [0, 1)."""
        raw: NDArray[np.uint64] = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self.uniforms(1)[0])

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.between(0, len(options)))]


@dataclass(frozen=True)
class Scene:
    """Everything in a picture but the species."""

    pose: NDArray[np.float64]  # (2, 2), from the bird's frame to the picture's, in which the picture is the unit square
    place: NDArray[np.float64]  # (2,), where the bird's centre lies
    behind: tuple[Shape, ...]
    before: tuple[Shape, ...]
    light: NDArray[np.float64]  # (3,) gain of red, green and blue
    slope: NDArray[np.float64]  # (2,) by how much the light changes across the picture, from side to side and downwards
    texture: NDArray[np.uint8]  # (24, 24), spread over the picture
    roughness: float  # how much the texture changes the light


def _placed(outline: Outline, place: Outline, width: float, height: float, angle: float) -> Outline:
    cosine, sine = np.cos(angle), np.sin(angle)
    turned: Outline = (outline * (width, height)) @ np.array([[cosine, sine], [-sine, cosine]])
    return turned + place


def _scattered(
    dice: Dice,
    outline: Outline,
    colours: Sequence[Colour],
    *,
    length: float,
    flatness: float = 1.0,
    turn: float = np.pi,
) -> Shape:
    length *= dice.between(0.6, 1.4)
    angle = dice.between(-turn, turn)
    return Shape(_placed(outline, dice.uniforms(2), length, length * flatness, angle), dice.choice(colours))


def compose(dice: Dice, difficulty: float) -> Scene:
    """A scene whose variety, clutter and occlusion grow with ``difficulty`` in [0, 1]."""
    flatness, (ground, *colours) = dice.choice(BACKDROPS)
    behind = [Shape(polygon((0, 0), (1, 0), (1, 1), (0, 1)), ground)]
    for _ in range(6 + round(16 * difficulty)):
        behind.append(_scattered(dice, arc(0, 340), colours, length=0.16, flatness=flatness, turn=0.3))
    for _ in range(round(dice.between(0, 10) * difficulty)):
        behind.append(_scattered(dice, _LEAF, LEAVES, length=0.1))

    tilt = dice.between(-0.7, 0.7) * difficulty
    scale = dice.between(0.58, 0.64) * (1 - dice.between(0, 0.4) * difficulty)
    mirror = dice.choice((-1.0, 1.0))
    pose = scale * np.array([[mirror * np.cos(tilt), mirror * np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    place = np.array([0.5 + dice.between(-0.2, 0.2) * difficulty, 0.52 + dice.between(-0.16, 0.16) * difficulty])
    foot = place + np.array([0.0, 0.52]) @ pose
    perch = _placed(_TWIG, foot, 1.5, dice.between(0.015, 0.035), tilt / 2 + dice.between(-0.2, 0.2))
    behind.append(Shape(perch, BARK))

    before = [_scattered(dice, _LEAF, LEAVES, length=0.08) for _ in range(round(dice.between(0, 8) * difficulty))]
    if dice.between(0, 1) < 0.8 * difficulty:
        before.append(_scattered(dice, _TWIG, (BARK,), length=0.8, flatness=0.018))

    warmth = dice.between(-0.3, 0.3) * difficulty
    brightness = 1 + dice.between(-0.55, 0.3) * difficulty
    return Scene(
        pose=pose,
        place=place,
        behind=tuple(behind),
        before=tuple(before),
        light=brightness * np.array([1 + warmth, 1.0, 1 - warmth]),
        slope=(2 * dice.uniforms(2) - 1) * 0.55 * difficulty,
        texture=(256 * dice.uniforms(24 * 24)).astype(np.uint8).reshape(24, 24),
        roughness=0.04 + 0.16 * difficulty,
    )


def _shapes(bird: Sequence[Shape], scene: Scene) -> list[Shape]:
    posed = [Shape(s.outline @ scene.pose + scene.place, s.colour, s.part) for s in bird]
    return [*scene.behind, *posed, *scene.before]


def _numbered(shapes: Sequence[Shape], image_size: int) -> Image.Image:
    """The supersampled picture in which every pixel holds the number of the shape that is seen there."""
    side = image_size * SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for number, shape in enumerate(shapes):
        pen.polygon(np.rint(shape.outline * side).astype(int).ravel().tolist(), fill=number)
    return canvas


def paint(bird: Sequence[Shape], scene: Scene, image_size: int) -> NDArray[np.uint8]:
    """The picture, shape ``(image_size, image_size, 3)``."""
    shapes = _shapes(bird, scene)
    canvas = _numbered(shapes, image_size)
    canvas.putpalette([value for shape in shapes for value in shape.colour])
    colours = np.asarray(canvas.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float64)
    across = np.linspace(-1, 1, image_size)
    shade = 1 + scene.slope[0] * across[None, :] + scene.slope[1] * across[:, None]
    texture = Image.fromarray(scene.texture).resize((image_size, image_size), Image.Resampling.BICUBIC)
    rough = 1 + scene.roughness * (np.asarray(texture, dtype=np.float64) / 127.5 - 1)
    lit: NDArray[np.float64] = np.clip(colours * scene.light * (shade * rough)[:, :, None], 0, 255)
    return np.rint(lit).astype(np.uint8)


def masks(bird: Sequence[Shape], scene: Scene, image_size: int) -> dict[str, NDArray[np.bool_]]:
    """Where each part is seen: the pixels that it covers by more than half, shape ``(image_size, image_size)``."""
    shapes = _shapes(bird, scene)
    numbers = np.asarray(_numbered(shapes, image_size))
    found = {}
    for part in dict.fromkeys(shape.part for shape in shapes if shape.part):
        of_part = np.array([shape.part == part for shape in shapes])
        covered = of_part[numbers].reshape(image_size, SUPERSAMPLING, image_size, SUPERSAMPLING).mean(axis=(1, 3))
        if (covered > 0.5).any():
            found[part] = covered > 0.5
    return found
