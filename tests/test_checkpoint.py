import os
import pickle

import pytest
import torch
from torch import nn

from robustfg.checkpoint import PARTS, Checkpoint
from robustfg.core.errors import UserError


def write(path, **changes):
    content = {
        "state_dict": nn.Linear(2, 3).state_dict(),
        "robustfg": {"config": dict.fromkeys(PARTS), "classes": ["a", "b", "c"]},
    }
    torch.save(content | changes, path)
    return path


def test_what_was_written_is_read(tmp_path):
    checkpoint = Checkpoint.read(write(tmp_path / "c.ckpt"))
    module = nn.Linear(2, 3)
    checkpoint.load_into(module)
    assert checkpoint.classes == ("a", "b", "c")
    assert torch.equal(module.weight, checkpoint.state["weight"])


class Evil:
    def __reduce__(self):
        return os.system, ("touch stolen",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.ckpt", extra=Evil())
    with pytest.raises(UserError, match=r"c.ckpt is refused: it holds more than plain data"):
        Checkpoint.read("c.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="old.ckpt is refused"):
        Checkpoint.read("old.ckpt")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_truncated_checkpoints_are_refused(tmp_path, keep):
    path = write(tmp_path / "c.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(UserError, match=r"checkpoint=.*c.ckpt is (damaged|refused)"):
        Checkpoint.read(path)


def test_a_folder_is_told_with_the_checkpoint_in_it(tmp_path):
    with pytest.raises(UserError, match=r"^checkpoint=.* is a folder; give a file$"):
        Checkpoint.read(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    best = write(tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=rf"^init_from={tmp_path} is a folder; give init_from={best}$"):
        Checkpoint.read(tmp_path, "init_from")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"\xff\xd8\xff", b"some text"])
def test_what_torch_cannot_have_written_is_no_checkpoint(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"^checkpoint=.*x is no checkpoint$"):
        Checkpoint.read(tmp_path / "x")


def test_a_checkpoint_tells_how_long_it_was_trained(tmp_path):
    loops = {"fit_loop": {"epoch_progress": {"current": {"processed": 6}}}}
    assert Checkpoint.read(write(tmp_path / "c.ckpt", loops=loops)).epochs == 6
    assert Checkpoint.read(write(tmp_path / "d.ckpt")).epochs == 0


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Checkpoint.read(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match="was not written by robustfg.train"):
        Checkpoint.read(tmp_path / "foreign.ckpt")


@pytest.mark.parametrize(
    ("module", "differences"),
    [
        (nn.Linear(2, 4), "bias, weight of another shape"),
        (nn.Linear(2, 3, bias=False), "bias unknown"),
        (nn.Sequential(nn.Linear(2, 3)), r"0\.bias, 0\.weight missing; bias, weight unknown"),
        (
            nn.Sequential(*[nn.Linear(2, 3)] * 3),
            r"0\.bias, 0\.weight, 1\.bias and 3 more missing; .* unknown",
        ),
    ],
)
def test_another_architecture_is_refused_with_what_differs(tmp_path, module, differences):
    with pytest.raises(
        UserError, match=rf"start=.*c\.ckpt belongs to another architecture: {differences}; check model"
    ):
        Checkpoint.read(write(tmp_path / "c.ckpt"), "start").load_into(module)


@pytest.mark.parametrize(("classes", "detail"), [(("a", "b"), "2 classes"), (("a", "x", "c"), "'b' against 'x'")])
def test_other_classes_are_refused(tmp_path, classes, detail):
    with pytest.raises(UserError, match=detail):
        Checkpoint.read(write(tmp_path / "c.ckpt")).expect_classes(classes)
