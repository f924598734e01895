"""Fine-grained data sets from the command line: their options, what a run tells of them, and privileged information."""

import json

import pytest
from archives import (
    build_aircraft,
    build_cars,
    build_cub,
    build_dogs,
    build_flowers,
    build_inaturalist,
    build_nabirds,
    build_pets,
)
from commands import config_of

from robustfg.cli import assemble
from robustfg.cli.config import CONF
from robustfg.cli.provenance import provenance
from robustfg.cli.trust import refuse_untrusted
from robustfg.core.errors import UserError
from robustfg.train import train

BUILD = {
    "cub": build_cub, "cars": build_cars, "aircraft": build_aircraft, "dogs": build_dogs, "flowers": build_flowers,
    "pets": build_pets, "nabirds": build_nabirds, "inaturalist": build_inaturalist,
}  # fmt: skip
CROPPED = ("cub", "cars", "aircraft", "dogs", "nabirds")
AUGMENTATIONS = sorted(path.stem for path in (CONF / "data" / "augment").glob("*.yaml"))
SMALL = ("model=tiny", "model.options.channels=[4,4,4,4]", "data.image_size=16", "data.num_workers=0")


def a_part_of(name):
    return () if name == "inaturalist" else ("data.expect_official=false",)


@pytest.mark.parametrize("name", BUILD)
def test_every_set_is_read_from_its_option_alone(tmp_path, name):
    BUILD[name](tmp_path)
    data = assemble.data_of(config_of("train", f"data={name}", f"data.root={tmp_path}", *a_part_of(name)))
    for split in ("train", "val", "test"):
        assert data.samples(split)[0].image.shape == (3, 224, 224)
    parts = [set(data.keys(split).values()) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert all("manifest_sha256" in facts for facts in data.describe().values())


@pytest.mark.parametrize("name", sorted(set(BUILD) - {"inaturalist"}))
def test_official_numbers_are_expected_by_default(tmp_path, name):
    BUILD[name](tmp_path)
    with pytest.raises(UserError, match=r"data\.expect_official=false"):
        assemble.data_of(config_of("train", f"data={name}", f"data.root={tmp_path}"))


@pytest.mark.parametrize("name", CROPPED)
def test_a_crop_is_an_option_of_every_set_with_boxes(tmp_path, name):
    BUILD[name](tmp_path)
    options = (f"data={name}", f"data.root={tmp_path}", *a_part_of(name))
    assert assemble.data_of(config_of("train", *options)).source.privileged is None
    cut = assemble.data_of(config_of("train", *options, "data.crop=box"))
    assert "cropped" in cut.source.privileged
    assert cut.source.test.image(0).shape == (6, 12, 3)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_augmentation_can_be_chosen_for_every_set_and_stored(tmp_path, augmentation):
    build_cub(tmp_path)
    for name in (*BUILD, "folder"):
        config = config_of("train", f"data={name}", f"data/augment={augmentation}")
        refuse_untrusted(config["data"])
    options = ("data=cub", f"data/augment={augmentation}", f"data.root={tmp_path}", "data.expect_official=false")
    sample = assemble.data_of(config_of("train", *options, "data.image_size=32")).samples("train")[0]
    assert sample.image.shape == (3, 32, 32)
    assert (CONF / "data" / "augment" / f"{augmentation}.yaml").read_text().startswith("# ")


def test_the_papers_preprocessing_is_cubs_default():
    data = config_of("train", "data=cub")["data"]
    assert (data["image_size"], data["keep_aspect"], data["crop"], data["batch_size"]) == (224, False, None, 80)
    assert data["augment"] == {
        "_target_": "robustfg.data.augment.Thirtyfold", "rotation": 15, "skew": 0.2, "shear": 10, "flip": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("crop", [None, "box"])
def test_the_summary_and_the_page_tell_privileged_information(tmp_path, crop):
    build_cub(tmp_path, per_class=6)
    config = config_of(
        "train", "data=cub", f"data.root={tmp_path}", "data.expect_official=false", *SMALL, "trainer.max_epochs=1",
        "attack=fgsm", "evaluation.checks=0", "trainer.accelerator=cpu", *([f"data.crop={crop}"] if crop else []),
    )  # fmt: skip
    train(config, tmp_path / "run", command=["test"])
    summary = json.loads((tmp_path / "run" / "robustness" / "summary.json").read_text())
    page = (tmp_path / "run" / "robustness" / "report.html").read_text()
    told = "images are cropped to the annotated box, at test time too"
    assert summary["privileged"] == (told if crop else None)
    assert (f"Privileged information:</b> {told}." in page) == bool(crop)
    assert ", files " in page


def test_the_manifest_changes_with_names_sizes_and_labels_and_reaches_the_provenance(tmp_path):
    folder = build_cub(tmp_path)
    options = ("data=cub", f"data.root={tmp_path}", "data.expect_official=false")

    def manifests():
        data = assemble.data_of(config_of("train", *options))
        splits = provenance(seed=0, splits=data.describe(), command=[], init_from=None)["splits"]
        return {name: facts["manifest_sha256"] for name, facts in splits.items()}

    before = manifests()
    assert manifests() == before
    image = folder / assemble.data_of(config_of("train", *options)).source.test.keys[0]
    image.write_bytes(image.read_bytes() + b"\0")
    after = manifests()
    assert after["test"] != before["test"]
    assert after["train"] == before["train"]
