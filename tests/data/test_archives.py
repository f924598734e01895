"""Archives made for the purpose: hostile, damaged, and unpacked over what is there."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import utils

from robustfg.core.errors import UserError
from robustfg.data.archives import unpack, unpacked_safely
from robustfg.data.official import matlab


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


FILES = {f"set/{n}é.bin": random.Random(n).randbytes(100) + bytes(99) for n in range(3)}
TWO = [*FILES.values()][:2]


def tarred(mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for path, content in FILES.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(kind):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for path, content in FILES.items():
            archive.writestr(path, content)
    return buffer.getvalue()


FORMATS = {
    "a.tar.gz": tarred("w:gz"), "a.tgz": tarred("w:gz"), "a.tbz2": tarred("w:bz2"), "a.tar.xz": tarred("w:xz"),
    "stored.zip": zipped(zipfile.ZIP_STORED), "deflated.zip": zipped(zipfile.ZIP_DEFLATED),
    "bzip2.zip": zipped(zipfile.ZIP_BZIP2), "lzma.zip": zipped(zipfile.ZIP_LZMA),
    "x.gz": b"".join(map(gzip.compress, TWO)), "x.bz2": b"".join(map(bz2.compress, TWO)),
    "x.xz": lzma.compress(b"".join(TWO)),
}  # fmt: skip


def came_of(folder, name, content):
    """What an archive unpacks to; None where it is refused, which must leave nothing."""
    folder.mkdir()
    (folder / name).write_bytes(content)
    try:
        unpack(folder / name, folder / "in")
    except RuntimeError as error:
        return None if str(folder / name) in str(error) and everything(folder) == [] else str(error)
    return {path: (folder / "in" / path).read_bytes() for path in everything(folder / "in")}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_archive_is_noticed_wherever_it_is_damaged(tmp_path, name):
    whole = FORMATS[name]
    right = FILES if "a." in name or "zip" in name else {"x": b"".join(TWO)}
    assert came_of(tmp_path / "whole", name, whole) == right
    places = range(0, len(whole) - 1, len(whole) // 5)
    for place in {*places, len(whole) - 9, len(whole) - 5, len(whole) - 1}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        assert came_of(tmp_path / f"flipped {place}", name, bytes(damaged)) in (None, right), place
    assert came_of(tmp_path / "middle", name, whole[: len(whole) // 3] + b"?" + whole[len(whole) // 3 + 1 :]) is None
    for end in {*places, len(whole) - 9, len(whole) - 1}:
        assert came_of(tmp_path / f"cut {end}", name, whole[:end]) is None, end


def test_a_plain_tar_that_ends_too_early_or_has_a_damaged_header_is_noticed(tmp_path):
    tar(tmp_path / "a.tar", *(f"set/{n}" for n in range(3)))
    whole = gzip.decompress((tmp_path / "a.tar").read_bytes())
    second, end = 1024, 3 * 1024  # a block of header and one of data each
    assert len(came_of(tmp_path / "whole", "a.tar", whole)) == 3
    for cut in (0, 100, second, second + 100, second + 512, second + 700, end, end + 100):
        assert came_of(tmp_path / f"cut {cut}", "a.tar", whole[:cut]) is None, cut
    for place in (0, second, second + 130, end):
        damaged = whole[:place] + b"?" + whole[place + 1 :]
        assert came_of(tmp_path / f"{place}", "a.tar", damaged) is None, place


@pytest.mark.parametrize(
    ("place", "flipped"), [(9, 8), (32, 57), (50, 1)], ids=["the name's encoding", "a comment", "a name like another"]
)
def test_a_damaged_list_of_a_zips_files_is_noticed(tmp_path, place, flipped):
    whole = bytearray(FORMATS["stored.zip"])
    whole[whole.index(b"PK\1\2") + place] ^= flipped
    assert came_of(tmp_path / "x", "stored.zip", bytes(whole)) is None


def test_what_is_no_archive_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError, match=r"notes\.txt is no \.tar"):
        unpack(tmp_path / "notes.txt")
    assert everything(tmp_path) == ["notes.txt"]


def test_a_compressed_matlab_file_with_a_flipped_bit_gives_its_numbers_or_one_line(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 999, 40)
    savemat(tmp_path / "a.mat", {"labels": numbers}, do_compression=True)
    whole = (tmp_path / "a.mat").read_bytes()
    refused = 0
    for place in range(120, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "b.mat").write_bytes(damaged)
        try:
            (found,) = matlab(tmp_path / "b.mat", tmp_path, "labels")
            assert np.array_equal(found, numbers), place
        except UserError as error:
            refused += str(tmp_path / "b.mat") in str(error)
    assert refused > 20
