"""What ``--help`` prints: what a command is for, examples, groups, options; or the files of the options it names."""

import re
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from robustfg.cli.config import CONF
from robustfg.core.errors import UserError

EXAMPLES = {
    "train": """\
  python -m robustfg.train loss=gm data=digits
  python -m robustfg.train data=folder data.root=photos model=resnet50 model.pretrained=true
  python -m robustfg.train -m loss=softmax,gm seed=0,1,2""",
    "evaluate": """\
  python -m robustfg.evaluate checkpoint=RUN/checkpoints/best.ckpt attack=standard
  python -m robustfg.evaluate checkpoint=RUN/checkpoints/best.ckpt attack=[fgsm,pgd] detector=likelihood
  python -m robustfg.evaluate model.name=resnet18 model.pretrained=true data=folder data.root=photos""",
    "predict": """\
  python -m robustfg.predict checkpoint=RUN/checkpoints/best.ckpt image.jpg folder/ more/*.png
  python -m robustfg.predict checkpoint=RUN/checkpoints/best.ckpt detectors=outputs/evaluations/RUN fpr=0.01 folder/
  find photos -name '*.jpg' | python -m robustfg.predict checkpoint=RUN/checkpoints/best.ckpt format=csv -

A word with = is an option unless a file of that name exists; every word after -- is a path.
Exit status: 0 all images were classified, 2 some failed, 1 nothing could be done.""",
}
ENTRY = re.compile(r"  - (?P<group>[a-z]\w*): *(?P<chosen>\w+) *# *(?P<line>.+)")
"""A group in a command's defaults list, with its comment."""


def help_of(command: str, words: Sequence[str]) -> str:
    """The text of ``--help``.

    Args:
        command: train, evaluate or predict.
        words: of the command line. ``loss=gm`` asks for the options of that file.

    Raises:
        UserError: if a group has no such file.
    """
    folders = [Path(folder) for flag, folder in pairwise(words) if flag in ("--config-dir", "-cd")] + [CONF]
    pairs = [(word.partition("=")[0].lstrip("+").partition("@")[0], word.partition("=")[2]) for word in words]
    asked = [(group, listed) for group, listed in pairs if listed and (CONF / group).is_dir()]
    if asked:
        names = [(group, name.strip()) for group, listed in asked for name in listed.strip("[]").split(",")]
        return "\n".join(_file(folders, group, name) for group, name in names)
    text = (CONF / f"{command}.yaml").read_text()
    purpose = text.splitlines()[0].removeprefix("# ")
    groups = [_group(**entry.groupdict()) for entry in ENTRY.finditer(text)]
    options = text[text.rindex("\n\n") :].strip()
    parts = [purpose, "Examples:\n" + EXAMPLES[command]]
    if groups:
        file = "loss=gm" if command == "train" else "attack=pgd"
        more = f"The options of a file: python -m robustfg.{command} {file} --help"
        parts.append("Groups, as group=file:\n" + "\n".join(groups) + "\n" + more)
    parts.append("Options, with their defaults:\n" + textwrap.indent(options, "  "))
    parts.append("--cfg job prints the composed config, --hydra-help the flags of Hydra.")
    return "\n\n".join(parts)


def _group(group: str, chosen: str, line: str) -> str:
    """A group's line and its files, the one that is chosen by default in front."""
    files = sorted({path.stem for path in (CONF / group).glob("*.yaml")} - {chosen, "stored"})
    listed = textwrap.fill(
        ", ".join([f"{chosen} (default)", *files]), 110, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
    return f"  {group}: {line}\n{listed}"


def _file(folders: Sequence[Path], group: str, name: str) -> str:
    """The text of a file, whose comments explain its options."""
    path = next((found for folder in folders if (found := folder / group / f"{name}.yaml").is_file()), None)
    if path is None:
        known = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        raise UserError(f"{group}={name}: there is no such file; choose from {known}")
    return f"{group}={name}  ({path})\n\n{path.read_text()}"
