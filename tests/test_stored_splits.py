"""A split is stored, not its recipe: what was trained on is never tested on, whatever happens to the files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import config_of
from PIL import Image

from robustfg.checkpoint import Checkpoint
from robustfg.cli.trust import offline, refuse_untrusted
from robustfg.core.errors import UserError
from robustfg.evaluate import evaluate
from robustfg.train import train

pytestmark = pytest.mark.xdist_group("stored splits")
SMALL = (
    "data.image_size=16", "data.num_workers=0", "data.batch_size=8", "trainer.accelerator=cpu",
    "model.options.channels=[8,8,8,8]", "loss=softmax", "attack=fgsm", "trainer.max_epochs=1",
)  # fmt: skip


def photos(root, *folders, count=12, start=0):
    for seed, folder in enumerate(folders):
        for number in range(count):
            pixels = np.random.default_rng(100 * seed + number + 7 * start).integers(0, 256, (16, 16, 3), np.uint8)
            path = root / folder / f"{number + start:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def options(root, *further):
    return config_of("train", "data=folder", f"data.root={root}", *SMALL, "test=false", *further)


def run_of(root, folder, *further):
    train(options(root, *further), folder, command=[])
    return json.loads((folder / "splits.json").read_text())


def told(checkpoint, folder, *further, data=()):
    """Keys that an evaluation has tested on, and its summary."""
    config = config_of(
        "evaluate", f"checkpoint={checkpoint}", *data, "attack=fgsm", "evaluation.checks=1", "trainer.accelerator=cpu",
        *further,
    )  # fmt: skip
    config["names"] = {"data": "folder", "attack": "fgsm"}
    evaluate(config, folder, command=[])
    summary = json.loads((folder / "robustness" / "summary.json").read_text())
    return json.loads((folder / "provenance.json").read_text())["splits"]["test"], summary


def hygiene(summary):
    return next(check for check in summary["checks"] if check["name"] == "split_hygiene")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    photos(root, "finch", "wren", "robin")
    folder = tmp_path_factory.mktemp("run")
    return root, folder, run_of(root, folder)


@pytest.fixture
def copy(first, tmp_path):
    """The photographs and the run, to be changed."""
    root, folder, splits = first
    shutil.copytree(root, tmp_path / "photos")
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "photos", tmp_path / "run", splits


def test_splits_are_stored_by_name_and_every_checkpoint_holds_them(first):
    root, folder, splits = first
    every = [key for name in ("train", "val", "test") for key in splits[name]]
    assert sorted(every) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    for name in ("best", "last"):
        content = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        json.dumps(content["robustfg"])
        assert Checkpoint.read(folder / "checkpoints" / f"{name}.ckpt").splits == content["robustfg"]["splits"]


@pytest.mark.parametrize("beside", [True, False], ids=["in its run", "moved away"])
def test_files_that_come_and_go_move_no_image_into_the_test(copy, tmp_path, capsys, beside):
    root, folder, splits = copy
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not beside:
        checkpoint = Path(shutil.copy(checkpoint, tmp_path / "alone.ckpt"))
        shutil.rmtree(folder)
    gone = splits["test"][0]
    (root / gone).unlink()
    (root / splits["train"][0]).unlink()
    photos(root, "finch", count=9, start=50)
    shutil.copy(root / splits["train"][1], root / "wren" / "copy.png")
    found, summary = told(checkpoint, tmp_path / "e", data=(f"data.root={root}",))
    assert summary["n"] == found["n"] == len(splits["test"]) - 1
    assert (hygiene(summary)["count"], hygiene(summary)["status"]) == (0, "inconclusive")
    assert "1 train images of the run are gone" in hygiene(summary)["detail"]
    assert any(gone in remark for remark in summary["remarks"])
    assert any("10 images (" in remark and "In no split" in remark for remark in summary["remarks"])
    assert gone in (tmp_path / "e" / "robustness" / "report.html").read_text()
    assert gone in capsys.readouterr().out


def test_samples_keep_their_ids_where_files_are_gone(copy, tmp_path):
    import pyarrow.parquet as pq

    root, folder, splits = copy
    checkpoint = folder / "checkpoints" / "best.ckpt"
    told(checkpoint, tmp_path / "whole", data=(f"data.root={root}",))
    (root / splits["test"][2]).unlink()
    told(checkpoint, tmp_path / "part", data=(f"data.root={root}",))
    whole, part = (
        pq.read_table(
            tmp_path / run / "robustness" / "records.parquet", columns=["attack", "index", "label"]
        ).to_pylist()
        for run in ("whole", "part")
    )
    assert part == [row for row in whole if row["index"] != 2]


@pytest.mark.parametrize(
    "asked",
    ["data.source.test_fraction=1", "data.source.test_fraction=0.5", "data.split_seed=3", "data.val_fraction=0.4"],
)
def test_data_chosen_again_with_another_recipe_is_split_as_the_run_was(first, tmp_path, asked):
    root, folder, splits = first
    checkpoint = folder / "checkpoints" / "best.ckpt"
    data = ("data=folder", f"data.root={root}", "data.image_size=16", "data.num_workers=0", asked)
    found, summary = told(checkpoint, tmp_path / "e", data=data)
    assert found["n"] == len(splits["test"])
    assert hygiene(summary)["status"] == "pass"
    assert any(asked.partition("=")[0] in remark for remark in summary["remarks"])


def test_training_images_under_other_names_are_found_and_the_verdict_says_so(first, tmp_path):
    root, folder, splits = first
    for key in splits["train"]:
        (tmp_path / "other" / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / key, (tmp_path / "other" / key).with_stem("x" + Path(key).stem))
    data = ("data=folder", f"data.root={tmp_path / 'other'}", "data.image_size=16", "data.source.test_fraction=1")
    found, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "e", data=data)
    assert hygiene(summary)["count"] == found["n"] == len(splits["train"])
    assert hygiene(summary)["status"] == "fail"
    assert summary["verdict"] == "invalid"


def test_other_images_are_tested_as_they_are_and_verified_only_where_the_training_images_are_at_hand(copy, tmp_path):
    root, folder, _ = copy
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    content["robustfg"]["config"]["data"]["root"] = str(root)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    other = photos(tmp_path / "other", "finch", "wren", "robin", count=5, start=60)
    data = ("data=folder", f"data.root={other}", "data.image_size=16", "data.source.test_fraction=1")
    _, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "e", data=data)
    assert (summary["n"], hygiene(summary)["status"]) == (15, "pass")
    shutil.rmtree(root)
    _, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "f", data=data)
    assert hygiene(summary)["status"] == "inconclusive"


def test_a_training_image_copied_into_the_test_before_the_training_is_found(tmp_path):
    root = photos(tmp_path / "photos", *(f"{split}/{name}" for split in ("Train", "Test") for name in "ab"))
    shutil.copy(root / "Train" / "a" / "00.png", root / "Test" / "a" / "another.png")
    run_of(root, tmp_path / "run")
    _, summary = told(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "e", data=(f"data.root={root}",))
    assert (hygiene(summary)["count"], hygiene(summary)["status"]) == (1, "fail")
    assert "Test/a/another.png is Train/a/00.png" in hygiene(summary)["detail"]


def test_two_images_that_have_changed_places_are_no_longer_verified(copy, tmp_path):
    root, folder, splits = copy
    (root / splits["test"][0]).write_bytes((root / splits["train"][0]).read_bytes() + b"\0")
    _, summary = told(folder / "checkpoints" / "best.ckpt", tmp_path / "e", data=(f"data.root={root}",))
    assert hygiene(summary)["status"] == "inconclusive"
    assert any(splits["test"][0] in remark for remark in summary["remarks"])


def test_a_continued_training_goes_on_with_its_splits_or_is_refused(copy):
    root, folder, splits = copy
    photos(root, "finch", count=4, start=50)
    (root / splits["test"][0]).unlink()
    train(options(root, "trainer.max_epochs=2"), folder, command=[])
    assert json.loads((folder / "splits.json").read_text()) == splits
    (root / splits["train"][0]).unlink()
    with pytest.raises(UserError, match=f"{splits['train'][0]}.* gone"):
        train(options(root, "trainer.max_epochs=3"), folder, command=[])


def test_a_class_that_has_come_is_refused_when_training_goes_on(copy):
    root, folder, _ = copy
    photos(root, "zebra")
    with pytest.raises(UserError, match="data has 4 classes"):
        train(options(root, "trainer.max_epochs=2"), folder, command=[])


def test_a_run_that_starts_from_another_tests_on_nothing_that_one_was_trained_on(copy, tmp_path):
    root, folder, splits = copy
    for name in ("finch", "wren"):
        (root / name / "00.png").unlink(), (root / name / "05.png").unlink()
    start = f"init_from={folder / 'checkpoints' / 'best.ckpt'}"
    second = run_of(root, tmp_path / "second", start)
    assert not set(second["test"]) & {*splits["train"], *splits["val"]}
    with pytest.raises(UserError, match=r"init_from=.* leave data\.source\.test_fraction as it was"):
        run_of(root, tmp_path / "third", start, "data.source.test_fraction=0.6")
    assert not (tmp_path / "third").exists()
    (folder / "checkpoints" / "best.ckpt").unlink()
    _, summary = told(tmp_path / "second" / "checkpoints" / "best.ckpt", tmp_path / "e", data=(f"data.root={root}",))
    assert hygiene(summary)["status"] == "inconclusive"
    assert "best.ckpt, which is gone with the names of its training images" in hygiene(summary)["detail"]


def test_runs_of_earlier_versions_are_evaluated_where_nothing_has_changed(copy, tmp_path):
    root, folder, splits = copy
    checkpoint = folder / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    del content["robustfg"]["splits"]
    torch.save(content, checkpoint)
    (folder / "splits.json").write_text(json.dumps(splits["ids"]))
    found, summary = told(checkpoint, tmp_path / "e", data=(f"data.root={root}",))
    assert (found["n"], hygiene(summary)["status"]) == (len(splits["test"]), "pass")
    for number in range(4):
        (root / "finch" / f"{number:02d}.png").unlink()
    with pytest.raises(UserError, match="trained on other images"):
        told(checkpoint, tmp_path / "f", data=(f"data.root={root}",))
    (folder / "provenance.json").unlink()
    _, summary = told(checkpoint, tmp_path / "g", data=(f"data.root={root}",))
    assert hygiene(summary)["status"] == "inconclusive"


@pytest.mark.parametrize("damage", ["zzz", 3, ""])
def test_damaged_splits_are_refused_in_one_line(copy, tmp_path, damage):
    root, folder, _ = copy
    checkpoint = folder / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["robustfg"]["splits"] = damage
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="checkpoint=.*stored splits are damaged"):
        told(checkpoint, tmp_path / "e", data=(f"data.root={root}",))


def test_the_digits_of_a_run_stay_apart_under_another_fraction(tmp_path):
    config = config_of("train", "data=digits", *SMALL, "data.image_size=12", "data.max_test_samples=40", "test=false")
    train(config, tmp_path / "run", command=[])
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert len(splits["test"]) > 400
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    data = ("data=digits", "data.image_size=12", "data.source.test_fraction=0.9", "data.max_test_samples=30")
    found, summary = told(checkpoint, tmp_path / "e", data=data)
    assert found["n"] == 30
    assert hygiene(summary)["status"] == "pass"


def test_a_checkpoint_never_fetches_anything_unless_the_user_types_it(tmp_path, monkeypatch):
    config = config_of("train", "data=digits", *SMALL, "data.image_size=12", "test=false")
    train(config, tmp_path / "run", command=[])
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    data = content["robustfg"]["config"]["data"]
    data |= {"root": str(tmp_path / "cifar"), "download": True}
    data["source"] = {"_target_": "robustfg.data.cifar.Cifar10", "root": str(tmp_path / "cifar"), "download": True}
    content["robustfg"]["config"]["model"] |= {"pretrained": True}
    torch.save(content, checkpoint)
    asked = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", lambda reader: asked.append(reader.root))
    with pytest.raises(UserError, match=r"cifar-10.* missing"):
        told(checkpoint, tmp_path / "e")
    assert asked == []
    assert not (tmp_path / "cifar").exists()
    with pytest.raises(UserError, match=r"cifar-10.* missing"):
        told(checkpoint, tmp_path / "e", "data.download=true")
    assert asked == [str(tmp_path / "cifar")]


def test_what_would_be_fetched_is_switched_off_at_any_depth_and_addresses_are_refused():
    node = {"pretrained": True, "deep": [{"download": "yes", "keep": True}], "options": {"x": {"pretrained": 1}}}
    found = {"pretrained": False, "deep": [{"download": False, "keep": True}], "options": {"x": {"pretrained": False}}}
    assert offline(node) == found
    assert offline({"weights": "mine.pth", "options": ({"checkpoint_path": "x"}, 1)}) == {
        "weights": None, "options": [{"checkpoint_path": None}, 1]
    }  # fmt: skip
    for name in (
        "hf-hub:a/net",
        "HF-Hub:a/net",
        " hf_HUB:a/net",
        "local-dir:x",
        "Local-Dir:/x",
        "https://a.org/net.pt",
    ):
        for node in ({"weights": name}, {"deep": ({"name": name},)}, {"deep": [[{"checkpoint_path": name}]]}):
            with pytest.raises(UserError, match="would be fetched"):
                offline({"model": node})
    with pytest.raises(UserError, match="arguments without names"):
        refuse_untrusted({"_target_": "robustfg.data.cifar.Cifar10", "_args_": ["x", True]})


@pytest.mark.parametrize("seed", [0, 1])
def test_drawn_images_of_another_seed_are_other_data_and_of_the_same_the_runs_own(tmp_path, seed):
    birds = ("data=birds", "data.source.train=64", "data.image_size=24", "data.source.num_genera=2")
    small = [word for word in SMALL if "image_size" not in word]
    config = config_of("train", *birds, *small, "data.source.species_per_genus=1", "data.source.test=16", "test=false")
    train(config, tmp_path / "run", command=[])
    data = (*birds, "data.source.species_per_genus=1", "data.source.test=32", f"data.source.seed={seed}")
    found, summary = told(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "e", data=data)
    assert found["n"] == (16 if seed == 0 else 32)
    assert hygiene(summary)["status"] == ("pass" if seed == 0 else "inconclusive")
    assert any("In no split: 16 images" in remark for remark in summary["remarks"]) is (seed == 0)
