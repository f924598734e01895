"""What the README and the pages of docs/ tell people to type must exist."""

import re
from pathlib import Path

import pytest
from commands import config_of

from robustfg.cli.config import CONF

ROOT = Path(__file__).parent.parent
README = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
COMMANDS = re.findall(r"-m robustfg\.(train|evaluate) ((?:[\w.=@\[\],/-]+ ?)+)", README)


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("command", "overrides"), COMMANDS)
def test_every_command_composes(command, overrides):
    sweep = overrides.startswith("-m ")
    words = [word.split(",")[0] if sweep and "[" not in word else word for word in overrides.split() if word != "-m"]
    assert config_of(command, *words)


@pytest.mark.parametrize(
    "group", ["data", "model", "loss", "training", "attack", "optimizer", "scheduler", "callbacks"]
)
def test_every_option_is_listed(group):
    for path in (CONF / group).glob("*.yaml"):
        names = {path.stem, path.stem.removesuffix("_l2")}
        assert path.stem == "stored" or any(f"`{name}`" in README for name in names), path


def test_links_between_pages_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        if target.islower() and target not in ("it",):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
