"""What the folders of a tree of images are: splits, classes, or neither."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustfg.core.errors import UserError
from robustfg.data.listing import Listing

TREE = "root/<class>/*.jpg, or root/train/<class>/*.jpg beside root/test/<class>/*.jpg (and root/val/… if there is one)"
ROLES = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "dev", "valset"),
    "test": ("test", "testing", "testset"),
}
"""Words that name a split, in any case."""
EITHER = ("eval", "evaluation")
"""Words for what is the test where there is no other, and else the validation."""
BESIDE = ("set", "split", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures")
"""Words that may stand beside one of them in a split's name, such as ``train_images``."""
SPLITTING = ("fold", "holdout", "split", "subset", "unlabeled", "unlabelled")
"""Words in names of parts of a data set that are none of these splits."""
NO_CLASSES = {"images", "image", "imgs", "jpegimages", "labels", "label", "masks", "mask", "annotations", "annotation",
              "segmentations", "gt", "depth"}  # fmt: skip
"""Names of folders that are no classes where there are no others."""
CLASSES_TOO = (*ROLES["train"], "valid", "dev")
"""Words for a split that may be the name of a class beside others, such as a train or a valid signature."""


@dataclass(frozen=True)
class Layout:
    """Which folder holds which split, and the classes in them."""

    folders: dict[str, str]
    """Folder below the root by split; only ``""`` for ``"train"`` where the classes lie in the root."""
    classes: tuple[str, ...]
    found: list[str]
    """The layout and what was left out, in lines for the user."""


class Tree:
    """The folders of a listing with the number of images right in each and below it."""

    def __init__(self, listing: Listing) -> None:
        self.direct = Counter(dict(enumerate(np.bincount(listing.paths.folder, minlength=1).tolist())))
        self.below: Counter[str] = Counter()
        self.children: dict[str, list[str]] = {}
        self.images: dict[str, int] = {}
        for number, folder in enumerate(listing.folders):
            self.images[folder] = self.direct[number]
            parts = folder.split("/") if folder else []
            for depth in range(len(parts) + 1):
                self.below["/".join(parts[:depth])] += self.direct[number]
            if parts:
                self.children.setdefault("/".join(parts[:-1]), []).append(folder)

    def names(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted."""
        return sorted(child.rpartition("/")[2] for child in self.children.get(folder, []))

    def classes(self, folder: str) -> list[str]:
        """Folders in a folder that hold images, themselves or deeper."""
        return [name for name in self.names(folder) if self.below[f"{folder}/{name}".lstrip("/")]]


def layout_of(root: Path, listing: Listing) -> Layout:
    """What the tree is. Raises ``UserError`` where it is no such tree or can be understood in two ways."""
    tree = Tree(listing)
    names = tree.names("")
    roles = _roles(root, names)
    splits = {name: role for name, role in roles.items() if tree.classes(name)}
    if len(roles) > 1 and not splits and not any(tree.below[name] for name in names if name not in roles):
        raise UserError(f"data.root={root}: {' and '.join(roles)} hold no class folders; expected {TREE}")
    if splits and not set(splits) <= set(names) - set(_as_classes(tree, names, splits)):
        splits = {}
    if not splits:
        _refuse_sets_of_sets(root, tree, names)
        _refuse_parts(root, tree, names)
        found = [f"classes are the folders in {root}"]
        classes, folders = _classes(root, tree, ""), {"train": ""}
    else:
        folders, classes, found = _given(root, tree, names, splits)
    _refuse_other_classes(root, tree, folders, classes)
    return Layout(folders, classes, [*found, *_left_out(tree, listing, folders, classes, names)])


def _roles(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The split of every folder that has a split's name."""
    roles = {name: role for name in names if (role := _role(name)) is not None}
    if len(either := [name for name, role in roles.items() if role == "either"]) > 1:
        raise UserError(f"data.root={root} has {' and '.join(either)}; name them val and test")
    for name in either:
        roles[name] = "val" if "test" in roles.values() else "test"
    for role in ROLES:
        if len(same := [name for name in roles if roles[name] == role]) > 1:
            raise UserError(
                f"data.root={root} has {' and '.join(same)}, which both name the {role} split; rename or remove one"
            )
    return roles


def _as_classes(tree: Tree, names: Sequence[str], splits: dict[str, str]) -> list[str]:
    """Folders with the name of a split that are classes: they hold images themselves, beside other such folders."""
    others = [name for name in names if name not in splits and tree.images[name]]
    return [name for name in splits if tree.images[name] and others]


def _given(
    root: Path, tree: Tree, names: Sequence[str], splits: dict[str, str]
) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Folders by split, the classes, and the layout in words."""
    folders = {role: name for role in ROLES for name, of in splits.items() if of == role}
    if "train" not in folders:
        raise UserError(
            f"data.root={root} has {' and '.join(folders.values())} but no train folder; expected {TREE}. To test on "
            f"one folder only, set data.root={root / next(iter(folders.values()))} data.source.test_fraction=1"
        )
    classes = _classes(root / folders["train"], tree, folders["train"])
    for name in names:
        if name not in splits and set(tree.classes(name)) & set(classes):
            raise UserError(
                f"data.root={root}: {name} holds classes of {folders['train']} too, but {name} is no usual name of a "
                "split; rename it to val or test, or move it away"
            )
    told = [f"{role} is {root / name}" for role, name in folders.items()]
    if "val" in folders and "test" not in folders:
        folders["test"] = folders.pop("val")
        told[-1] = f"test is {root / folders['test']}, as there is no test folder"
    return folders, classes, [", ".join(told)]


def _classes(folder: Path, tree: Tree, below: str) -> tuple[str, ...]:
    names = tuple(tree.names(below))
    if len(names) < 2:
        beside = f" and {tree.images[below]:,} images beside them" if tree.images[below] else ""
        inside = f"; if it is the data set, set data.root={folder / names[0]}" if names else ""
        raise UserError(
            f"{folder} holds {len(names)} class folders{beside}, need at least two; expected {TREE}{inside}"
        )
    if {name.casefold() for name in names} <= NO_CLASSES:
        raise UserError(
            f"{folder} holds {', '.join(names)}, which are no classes but what data sets for detection or segmentation "
            f"have; expected {TREE}"
        )
    return names


def _refuse_sets_of_sets(root: Path, tree: Tree, names: Sequence[str]) -> None:
    """A folder of data sets has no classes of its own."""
    parts = {
        name: [part for part in tree.names(name) if _role(part) is not None and tree.classes(f"{name}/{part}")]
        for name in tree.classes("")
    }
    sets = [name for name, splits in parts.items() if len(splits) > 1 or all(parts.values())]
    if sets:
        raise UserError(
            f"data.root={root} holds data sets with splits of their own ({', '.join(sets[:3])}); choose one, such as "
            f"data.root={root / sets[0]}"
        )


def _refuse_parts(root: Path, tree: Tree, names: Sequence[str]) -> None:
    """Parts of one data set, such as its folds, are no classes: they hold the same folders or are named so."""
    inside = {name: set(tree.classes(name)) for name in tree.classes("")}
    named = [name for name in inside if _names_a_part(name)]
    for first in named or list(inside)[:1]:
        others = [name for name in inside if name != first and len(inside[first] & inside[name]) > 1]
        if others and (named or (len(others) == len(inside) - 1 and not any(tree.images[name] for name in inside))):
            shared = sorted(inside[first] & inside[others[0]])
            raise UserError(
                f"data.root={root}: {first} and {others[0]} hold the same folders ({', '.join(shared[:2])}, …), so "
                "they are no classes; rename them to train, val and test, or put what is in them together: expected "
                f"{TREE}"
            )
    unlikely = [name for name in named if _role(name) is not None and {*_words(name)}.isdisjoint(CLASSES_TOO)]
    if unlikely or (named and len(named) == len(inside) > 1):
        raise UserError(
            f"data.root={root}: {(unlikely or named)[0]} has the name of a part of a data set and would be a class; "
            f"rename it or move it away: expected {TREE}"
        )


def _words(name: str) -> list[str]:
    """The words of a folder's name in lower case: ``["train", "images"]`` of ``TrainImages``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+|\d+", spaced.casefold())


def _role(name: str) -> str | None:
    """The split that a folder's name says, ``"either"`` for ``EITHER``; None for any other name."""
    known = {word: role for role, words in ROLES.items() for word in words} | dict.fromkeys(EITHER, "either")
    words = [word for word in _words(name) if word not in BESIDE]
    return known.get(words[0]) if len(words) == 1 else None


def _names_a_part(name: str) -> bool:
    """Whether a split or another part of a data set is among the words of a folder's name."""
    return not {*_words(name)}.isdisjoint([*EITHER, *SPLITTING, *(word for words in ROLES.values() for word in words)])


def _refuse_other_classes(root: Path, tree: Tree, folders: dict[str, str], classes: tuple[str, ...]) -> None:
    """Every split must have the classes of train."""
    for folder in folders.values():
        for name in tree.classes(folder):
            if name not in classes:
                like = [known for known in classes if _alike(known) == _alike(name)]
                hint = f"; it has {like[0]!r}" if like else ""
                raise UserError(
                    f"{root / folder} has the class {name!r}, which {root / folders['train']} has not{hint}"
                )
        if missing := [name for name in classes if name not in tree.names(folder)]:
            raise UserError(f"{root / folder / missing[0]} is missing: every split needs images of every class")


def _left_out(
    tree: Tree, listing: Listing, folders: dict[str, str], classes: tuple[str, ...], names: Sequence[str]
) -> list[str]:
    """What is there and not used, and what looks like a mistake, in lines."""
    left = [f"{count:,} {what}" for what, count in sorted(listing.left_out.items()) if not what.startswith(".")]
    if kinds := Counter({what: count for what, count in listing.left_out.items() if what.startswith(".")}):
        told = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(5))
        left.append(f"{kinds.total():,} files that are no images ({told}{', …' if len(kinds) > 5 else ''})")
    beside = {folder for folder in ("", *folders.values()) if tree.images[folder]}
    left += [
        f"{tree.images[folder]:,} images beside the folders in {folder or 'the root'}" for folder in sorted(beside)
    ]
    if "" not in folders.values():
        others = [name for name in names if name not in folders.values() and tree.below[name]]
        left += [f"the folder {name} with {tree.below[name]:,} images" for name in others]
    lines = [f"left out: {'; '.join(left)}"] if left else []
    alike = Counter(map(_alike, classes))
    if twice := [name for name in classes if alike[_alike(name)] > 1]:
        lines.append(f"classes whose names differ in case or accents' form only: {', '.join(twice[:6])}")
    return lines


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
