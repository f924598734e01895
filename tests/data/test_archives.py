"""Archives made for the purpose: hostile, damaged, and unpacked over what is there."""

import io
import tarfile
import zipfile

import pytest
from torchvision.datasets import utils

from robustfg.data.archives import unpack, unpacked_safely


def tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = 0 if info.type != tarfile.REGTYPE else 4
            archive.addfile(info, io.BytesIO(b"data"))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "member",
    [
        "../../x",
        special("set/x", tarfile.SYMTYPE, "/etc"),
        special("set/x", tarfile.SYMTYPE, "../../.."),
        special("set/x", tarfile.LNKTYPE, "../../secret"),
        special("set/x", tarfile.FIFOTYPE),
        special("set/x", tarfile.CHRTYPE),
    ],
    ids=["above", "link to /etc", "link above", "hard link above", "pipe", "device"],
)
def test_a_tar_that_leads_out_of_its_folder_leaves_nothing(tmp_path, member):
    (tmp_path / "root" / "deep").mkdir(parents=True)
    path = tar(tmp_path / "root" / "deep" / "a.tgz", "set/first.png", member)
    with unpacked_safely(), pytest.raises(RuntimeError, match=r"a\.tgz is damaged and has been removed"):
        utils.extract_archive(str(path), str(tmp_path / "root" / "deep"))
    assert everything(tmp_path) == []


def test_absolute_names_and_zips_stay_inside(tmp_path):
    tar(tmp_path / "a.tgz", "/tmp/robustfg-absolute")
    unpack(tmp_path / "a.tgz", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../x", "data")
        archive.writestr("/y", "data")
    unpack(tmp_path / "b.zip", tmp_path / "in")
    assert everything(tmp_path) == ["a.tgz", "b.zip", "in/tmp/robustfg-absolute", "in/x", "in/y"]


def test_a_half_archive_is_removed_and_leaves_nothing_that_looks_complete(tmp_path):
    path = tar(tmp_path / "a.tgz", *(f"set/{number}.png" for number in range(500)))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RuntimeError, match="damaged"):
        unpack(path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_completed(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own.txt").write_text("mine")
    unpack(tar(tmp_path / "a.tgz", "set/1.png", "set/deep/2.png"))
    assert everything(tmp_path) == ["a.tgz", "set/1.png", "set/deep/2.png", "set/own.txt"]
    assert utils.extract_archive is not unpack
