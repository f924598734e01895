"""Small data sets in the layouts of the published ones."""

import json

import numpy as np
from PIL import Image
from scipy.io import savemat


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


def struct(**columns):
    """A MATLAB struct array with these fields."""
    rows = list(zip(*columns.values(), strict=True))
    array = np.zeros((1, len(rows)), dtype=[(name, object) for name in columns])
    for position, row in enumerate(rows):
        array[0, position] = row
    return array


def cell(values):
    """A MATLAB cell array of texts, one column."""
    array = np.zeros((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


CAR_CLASSES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012", "Land Rover LR2 SUV 2012")


def build_cars(root, withlabels="."):
    """stanford_cars with four classes, eight training and four test images; boxes count from 1 as MATLAB does."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cell(CAR_CLASSES).T})
    for name, labels in (("train", [1, 2, 3, 4, 4, 3, 2, 1]), ("test", [2, 1, 4, 3])):
        files = [f"{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        for number, file in enumerate(files):
            put_image(folder / f"cars_{name}" / file, picture(number + 50 * (name == "test")))
        corners = {
            f"bbox_{corner}": [value] * len(files) for corner, value in (("x1", 5), ("y1", 6), ("x2", 16), ("y2", 11))
        }
        savemat(folder / "devkit" / f"cars_{name}_annos.mat", {"annotations": struct(
            **corners, **({"class": labels} if name == "train" else {}), fname=files)})  # fmt: skip
        if name == "test" and withlabels is not None:
            annotations = struct(**corners, **{"class": labels}, fname=files)
            savemat(folder / withlabels / "cars_test_annos_withlabels.mat", {"annotations": annotations})
    return folder


AIRCRAFT = {  # variant: family, manufacturer
    "707-320": ("Boeing 707", "Boeing"),
    "737-200": ("Boeing 737", "Boeing"),
    "737-300": ("Boeing 737", "Boeing"),
    "F-16A/B": ("F-16", "Lockheed Martin"),
}


def build_aircraft(root):
    """fgvc-aircraft-2013b with four variants, of each two images in train, one in val and one in test."""
    folder = root / "fgvc-aircraft-2013b"
    data = folder / "data"
    put_text(data / "variants.txt", *AIRCRAFT)
    put_text(data / "families.txt", "Boeing 707", "Boeing 737", "F-16")
    put_text(data / "manufacturers.txt", "Boeing", "Lockheed Martin")
    images = {name: [] for name in ("train", "val", "test")}
    for number, (variant, (family, manufacturer)) in enumerate(AIRCRAFT.items()):
        for place, part in enumerate(("train", "val", "test", "train")):
            images[part].append((f"{1000000 + 10 * number + place}", variant, family, manufacturer))
    images["trainval"] = images["train"] + images["val"]
    for part, rows in images.items():
        put_text(data / f"images_{part}.txt", *(row[0] for row in rows))
        for column, level in enumerate(("variant", "family", "manufacturer"), 1):
            put_text(data / f"images_{level}_{part}.txt", *(f"{row[0]} {row[column]}" for row in rows))
    names = [row[0] for part in ("train", "val", "test") for row in images[part]]
    put_text(data / "images_box.txt", *(f"{name} 5 6 16 11" for name in names))
    for name in names:
        put_image(data / "images" / f"{name}.jpg", picture(int(name) % 1000, (24, 38)))
    return folder


DOG_FOLDERS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02095314-wire-haired_fox_terrier")


def build_dogs(root, annotated=True):
    """stanford_dogs with three breeds, of each two training images and one test image with two dogs on it."""
    folder, lists = root / "stanford_dogs", {"train": [], "test": []}
    for label, breed in enumerate(DOG_FOLDERS, 1):
        for number in range(3):
            name = f"{breed}/{breed.split('-')[0]}_{number}"
            lists["test" if number == 0 else "train"].append((name, label))
            put_image(folder / "Images" / f"{name}.jpg", picture(10 * label + number))
            boxes = [(4, 5, 10, 9), (8, 7, 16, 11)][: 2 if number == 0 else 1]
            objects = "".join(
                "\t<object>\n\t\t<name>dog</name>\n\t\t<bndbox>\n"
                f"\t\t\t<xmin>{a}</xmin>\n\t\t\t<ymin>{b}</ymin>\n\t\t\t<xmax>{c}</xmax>\n\t\t\t<ymax>{d}</ymax>\n"
                "\t\t</bndbox>\n\t</object>\n"
                for a, b, c, d in boxes
            )
            if annotated:
                put_text(folder / "Annotation" / name, f"<annotation>\n{objects}</annotation>")
    for part, rows in lists.items():
        savemat(folder / f"{part}_list.mat", {
            "file_list": cell([f"{name}.jpg" for name, _ in rows]), "annotation_list": cell([name for name, _ in rows]),
            "labels": np.array([[float(label)] for _, label in rows])})  # fmt: skip
    return folder


def build_flowers(root):
    """flowers-102 with the classes 1 to 102 once in training, 1 to 3 in validation and 102, 2 and 1 in the test."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    labels = [*range(1, 103), 1, 2, 3, 102, 2, 1]
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    ids = {"trnid": range(1, 103), "valid": range(103, 106), "tstid": range(106, 109)}
    savemat(folder / "setid.mat", {name: np.array([list(numbers)], np.uint16) for name, numbers in ids.items()})
    for number in range(1, 109):
        put_image(folder / "jpg" / f"image_{number:05d}.jpg", picture(number, (8, 6)))
    return folder


PET_BREEDS = (("Abyssinian", 1, 1), ("american_bulldog", 2, 1), ("Maine_Coon", 1, 2))  # name, species, breed


def build_pets(root, trimaps=True):
    """oxford-iiit-pet with three breeds, of each two images in trainval and one in test."""
    folder, tables = root / "oxford-iiit-pet", {"trainval": [], "test": []}
    for label, (breed, species, number) in enumerate(PET_BREEDS, 1):
        for image in (1, 2, 100):
            name = f"{breed}_{image}"
            tables["test" if image == 2 else "trainval"].append(f"{name} {label} {species} {number}")
            put_image(folder / "images" / f"{name}.jpg", picture(image + label))
            trimap = np.full((18, 24), 2, np.uint8)
            trimap[4:14, 6:18], trimap[5:13, 7:17] = 3, 1
            if trimaps:
                put_image(folder / "annotations" / "trimaps" / f"{name}.png", trimap)
    for part, rows in tables.items():
        put_text(folder / "annotations" / f"{part}.txt", *rows)
    return folder


NABIRD_NAMES = {  # number: name, number of the node above
    0: ("Birds", None),
    1: ("Hawks, Kites, Eagles, and Allies", 0),
    2: ("Red-tailed Hawk", 1),
    3: ("Anhinga", 0),
    817: ("Red-tailed Hawk (Dark morph)", 2),
    818: ("Red-tailed Hawk (Light morph adult)", 2),
    900: ("Bald Eagle", 1),
}


def build_nabirds(root):
    """nabirds with four classes (3, 817, 818, 900), of each two training images and one test image."""
    folder, rows = root / "nabirds", []
    for label in (817, 3, 900, 818):
        for number in range(3):
            name = f"{label:08x}-0000-4000-8000-{number:012x}"
            rows.append((name, f"{label:04d}/{name.replace('-', '')}.jpg", label, int(number != 0)))
    for position, (_, path, _, _) in enumerate(rows):
        put_image(folder / "images" / path, picture(position))
    put_text(folder / "images.txt", *(f"{name} {path}" for name, path, _, _ in rows))
    put_text(folder / "image_class_labels.txt", *(f"{name} {label}" for name, _, label, _ in rows))
    put_text(folder / "train_test_split.txt", *(f"{name} {flag}" for name, _, _, flag in rows))
    put_text(folder / "bounding_boxes.txt", *(f"{name} 4 5 12 6" for name, _, _, _ in rows))
    put_text(folder / "classes.txt", *(f"{number} {name}" for number, (name, _) in NABIRD_NAMES.items()))
    put_text(folder / "hierarchy.txt", *(f"{n} {above}" for n, (_, above) in NABIRD_NAMES.items() if above is not None))
    put_text(folder / "parts" / "parts.txt", "0 bill", "1 crown", "2 left wing")
    places = (f"{name} 0 6 7 1\n{name} 1 -1 -1 0\n{name} 2 20 8 1" for name, _, _, _ in rows)
    put_text(folder / "parts" / "part_locs.txt", *places)
    return folder


def build_inaturalist(root):
    """Three categories, numbered 7, 3 and 5, with two training images and one validation image each."""
    folder = root / "inaturalist"
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus")
    lines = {
        7: ("Turdus merula", ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus")),
        3: ("Turdus migratorius", ("Animalia", "Chordata", "Aves", "Passeriformes", "Turdidae", "Turdus")),
        5: ("Parus major", ("Animalia", "Chordata", "Aves", "Passeriformes", "Paridae", "Parus")),
    }
    categories = [
        {"id": number, "name": name, "supercategory": "Birds", **dict(zip(ranks, line, strict=True))}
        for number, (name, line) in lines.items()
    ]
    for part, count in (("train", 2), ("val", 1)):
        files = [(number, f"{part}/{number:05d}_x/{number}{n}.jpg") for number in (7, 3, 5) for n in range(count)]
        for number, file in files:
            put_image(folder / file, picture(number, (12, 9)))
        images = [
            {"id": 500 + place, "file_name": file, "width": 12, "height": 9} for place, (_, file) in enumerate(files)
        ]
        notes = [{"id": 900 + n, "image_id": 500 + n, "category_id": number} for n, (number, _) in enumerate(files)]
        content = {"info": {}, "images": images, "annotations": notes[::-1], "categories": categories, "licenses": []}
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder
