import re

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from robustfg.cli.config import CONF, build, plain, register_schemas
from robustfg.core.errors import UserError
from robustfg.data.birds import Birds
from robustfg.data.datamodule import DataModule, described
from robustfg.data.digits import Digits
from robustfg.data.folder import Folder
from robustfg.data.unknown import OtherSet, UnknownFolder
from robustfg.data.unknown_birds import UnknownGenera, UnknownSpecies

register_schemas()
BIRDS = Birds(num_genera=3, species_per_genus=2, train=4, test=4, image_size=24)
EVERYTHING = Birds(num_genera=5, species_per_genus=5, train=1, test=1, image_size=24)


def test_near_birds_are_of_known_genera_and_none_of_the_known_species():
    near = UnknownSpecies(known=BIRDS, species_per_genus=3, images=40)
    assert len(near.classes) == len(set(near.classes)) == 9
    assert not set(near.classes) & set(BIRDS.classes)
    assert {name.split("_")[0] for name in near.classes} == set(BIRDS.genera)
    assert set(near.classes) < set(EVERYTHING.classes)
    assert np.bincount(near.images.labels).min() >= 4


def test_far_birds_are_of_no_known_genus():
    far = UnknownGenera(known=BIRDS, num_genera=2, species_per_genus=5, images=40)
    assert len(far.classes) == len(set(far.classes)) == 10
    assert not {name.split("_")[0] for name in far.classes} & set(BIRDS.genera)
    assert set(far.classes) < set(EVERYTHING.classes)


def test_unknown_birds_are_drawn_in_the_style_of_the_known_ones_and_in_scenes_of_their_own():
    near, far = UnknownSpecies(known=BIRDS, images=5).images, UnknownGenera(known=BIRDS, images=5).images
    pictures = [split.image(i) for split in (near, far, BIRDS.test, BIRDS.train) for i in range(4)]
    assert {picture.shape for picture in pictures} == {(24, 24, 3)}
    assert (
        len({picture[:2].tobytes() for picture in pictures}) == 16
    )  # no bird reaches the upper edge: the scenes differ
    again = UnknownSpecies(known=Birds(num_genera=3, species_per_genus=2, image_size=24), images=9).images
    assert (again.image(2) == near.image(2)).all()
    other = UnknownSpecies(known=Birds(num_genera=3, species_per_genus=2, image_size=24, seed=1), images=9).images
    assert (other.image(2) != near.image(2)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnknownSpecies(known=Digits()), "need data=birds"),
        (lambda: UnknownSpecies(known=BIRDS, species_per_genus=15), "species_per_genus must be in [1, 14]"),
        (lambda: UnknownGenera(known=BIRDS, num_genera=43), "num_genera must be in [1, 42], got 43"),
        (lambda: UnknownGenera(known=BIRDS, species_per_genus=17), "species_per_genus must be in [1, 16], got 17"),
        (lambda: UnknownGenera(known=BIRDS, images=0), "images must be >= 1, got 0"),
        (lambda: OtherSet(known=Digits(), source=Digits()), "its class '0' is one of the data's"),
        (lambda: OtherSet(known=BIRDS, source=Digits(), images=0), "images of another data set must be >= 1, got 0"),
        (lambda: UnknownFolder(known=BIRDS, root=None), "unknown.folder.root is not set"),
        (lambda: UnknownFolder(known=BIRDS, root="/nowhere"), "unknown.folder.root=/nowhere: no such folder"),
    ],
)
def test_mistakes_name_the_option(make, message):
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_a_folder_gives_all_images_below_it_or_a_fixed_part(tmp_path):
    for name in ("a.png", "deep/er/b.jpg", ".hidden/c.png", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (200, 10, 10)).save(tmp_path / name, "png")
    found = UnknownFolder(known=BIRDS, root=str(tmp_path)).images
    assert found.keys == ["a.png", "deep/er/b.jpg"]
    assert found.image(1).shape == (7, 9, 3)
    part = UnknownFolder(known=BIRDS, root=str(tmp_path), images=1).images
    assert len(part.keys) == 1
    assert part.keys == UnknownFolder(known=BIRDS, root=str(tmp_path), images=1).images.keys
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        UnknownFolder(known=BIRDS, root=str(tmp_path / "empty"))


def test_a_part_of_another_set_has_its_classes_in_turn_and_their_own_images():
    everything, part = Digits().test, OtherSet(known=BIRDS, source=Digits(), images=25).images
    assert set(np.bincount(part.labels)) == {2, 3}
    where = {key: position for position, key in enumerate(everything.keys)}
    assert len(set(part.keys)) == len(part.keys) == 25
    for position, (key, label) in enumerate(zip(part.keys, part.labels, strict=True)):
        assert label == everything.labels[where[key]]
        assert np.array_equal(part.image(position), everything.image(where[key]))


def test_a_part_of_a_set_of_files_has_a_manifest_of_its_files(tmp_path):
    for label in "ab":
        for i in range(6):
            path = tmp_path / "test" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9 + i, 7), (200, 10 * i, 10)).save(path)
            (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7)).save(tmp_path / "train" / label / f"{i}.png")

    def manifest():
        part = OtherSet(known=BIRDS, source=Folder(root=str(tmp_path)), images=12).images
        return described(part, np.arange(12))["manifest_sha256"]

    before = manifest()
    assert before == manifest()
    Image.new("RGB", (90, 70), (1, 2, 3)).save(tmp_path / "test" / "a" / "0.png")
    assert manifest() != before


def test_the_data_module_fits_unknown_images_to_the_models_size():
    data = DataModule(source=BIRDS, image_size=20, batch_size=4, num_workers=0)
    other = OtherSet(known=BIRDS, source=Digits())
    loader = data.unknown_dataloader(other.images)
    batches = list(loader)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(len(other.images.labels)))
    assert batches[0].image.shape == (4, 3, 20, 20)
    assert batches[0].image.max() <= 1


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("birds", ["birds_near", "birds_far"]),
        ("birds_near", ["birds_near"]),
        ("[birds_far,digits]", None),
        (None, []),
    ],
)
def test_options_give_sets_by_name_that_the_known_source_completes(option, names):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("evaluate", overrides=["run_name=r", *([f"unknown={option}"] if option else [])]))
    nodes = config["unknown"] or {}
    assert list(nodes) == (["birds_far", "digits"] if names is None else names)
    for name, node in nodes.items():
        assert len(build(node, f"unknown.{name}", known=BIRDS).images.labels) >= 400
