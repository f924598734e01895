"""Small data sets in the layouts of the published ones."""

import numpy as np
from PIL import Image


def picture(seed=0, size=(24, 18)):
    """Random pixels ``(H, W, 3)`` of an image that is ``size`` wide and high; smooth, so that JPEG keeps them."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def put_image(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)


def put_text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def stored(path):
    """The pixels of a file as they lie in it."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def replace_line(path, number, text):
    lines = path.read_text().splitlines()
    lines[number] = text
    path.write_text("".join(f"{line}\n" for line in lines if line is not None))


CUB_CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani")
CUB_PARTS = (
    *("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape"),
    *("right eye", "right leg", "right wing", "tail", "throat"),
)


def build_cub(root, per_class=3, segmentations=False):
    """CUB_200_2011 with four classes: of every class the first image is for the test, the others for training."""
    folder = root / "CUB_200_2011"
    images = [
        (f"{name}/{name[4:].title()}_{number:04d}_{label * 31 + number}.jpg", label)
        for label, name in enumerate(CUB_CLASSES)
        for number in range(per_class)
    ]
    ids = range(1, len(images) + 1)
    for number, (path, _) in zip(ids, images, strict=True):
        put_image(folder / "images" / path, picture(number))
        if segmentations:
            votes = np.zeros((18, 24), np.uint8)
            votes[5:11, 4:16], votes[6:10, 6:12] = 102, 204
            put_image((root / "segmentations" / path).with_suffix(".png"), votes)
    put_text(folder / "images.txt", *(f"{number} {path}" for number, (path, _) in zip(ids, images, strict=True)))
    put_text(folder / "classes.txt", *(f"{number} {name}" for number, name in enumerate(CUB_CLASSES, 1)))
    labels = (f"{number} {label + 1}" for number, (_, label) in zip(ids, images, strict=True))
    put_text(folder / "image_class_labels.txt", *labels)
    put_text(folder / "train_test_split.txt", *(f"{number} {int((number - 1) % per_class != 0)}" for number in ids))
    put_text(folder / "bounding_boxes.txt", *(f"{number} 4.0 5.0 12.0 6.0" for number in ids))
    put_text(folder / "parts" / "parts.txt", *(f"{number} {name}" for number, name in enumerate(CUB_PARTS, 1)))
    places = (
        f"{number} {part} {part}.0 {5 + part % 7}.0 1" if part % 2 else f"{number} {part} 0.0 0.0 0"
        for number in ids
        for part in range(1, 16)
    )
    put_text(folder / "parts" / "part_locs.txt", *places)
    return folder
