"""How commands end at a mistake of the user's: one plain line, exit code 1 and no traceback."""

import inspect
import os
import re
import signal
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustfg.cli.config import CONF
from robustfg.cli.help import help_of
from robustfg.cli.suggestions import NoOptionError, alike, names_of
from robustfg.cli.words import as_typed, key_of
from robustfg.core.errors import UserError
from robustfg.core.text import printable

TRACEBACK = "ROBUSTFG_TRACEBACK"
"""Environment variable: set to anything, errors are raised as they are."""

EXTRAS = {
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher", "ray": "hydra-ray-launcher", "rq": "hydra-rq-launcher",
        "submitit_local": "hydra-submitit-launcher", "submitit_slurm": "hydra-submitit-launcher",
    },
    "hydra/sweeper": {
        "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper", "optuna": "hydra-optuna-sweeper",
    },
    "hydra/job_logging": {"colorlog": "hydra-colorlog"},
    "hydra/hydra_logging": {"colorlog": "hydra-colorlog"},
}  # fmt: skip
"""Packages that bring further choices of Hydra's own groups."""


def run_plainly(command: str, composed: Callable[[], object]) -> None:
    """Runs a command of Hydra's. What cannot be composed ends it with one plain line and exit code 1.

    Words of the command line are taken as they were typed where Hydra would read a text as a number or could not read
    it. An option that its constructor takes need not be listed in a YAML file, nor begin with ``+``.

    Args:
        command: name of its primary config.
        composed: the command, decorated by Hydra.
    """
    try:
        try:
            _run(command, composed)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one cannot end it sooner
        print("robustfg: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # of --help or --cfg
        discard_stdout()
        raise SystemExit(141) from None


def discard_stdout() -> None:
    """What is left in its buffer cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: str, composed: Callable[[], object]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors then, instead of printing them
    try:
        if {"--help", "-h"} & {*sys.argv[1:]}:
            print(help_of(command, sys.argv[1:]))
            return
        sys.argv[1:] = as_typed(sys.argv[1:])
        while True:
            try:
                composed()
                return
            except HydraException as error:
                if not _added(error, command):
                    raise
    except (HydraException, OmegaConfBaseException, UserError) as error:
        words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
        raise SystemExit(_line(told(error, command, words))) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        if TRACEBACK in os.environ:
            raise
        raise SystemExit(_line(_composing(error))) from None


@contextmanager
def told_plainly(config: DictConfig) -> Iterator[None]:
    """Ends the command with a ``UserError``'s message and exit code 1, without traceback.

    Any other error is ours or the machine's: its traceback goes to a file that the last line names, or stays as it is
    where the environment has ``ROBUSTFG_TRACEBACK``.

    Args:
        config: as composed, where options with similar names are looked for.
    """
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough, such as head
        discard_stdout()
        raise SystemExit(141) from None
    except Exception as error:
        if TRACEBACK in os.environ:
            raise
        if isinstance(error, NoOptionError):
            error = error.among(names_of(cast(dict[str, Any], OmegaConf.to_container(config))))
        message = _line(_plain(error))
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on
            raise CompactHydraException(message) from None
        raise SystemExit(message) from None


def _plain(error: Exception) -> str:
    """What is to be said of an error of a running command."""
    message = str(error)
    if inner := re.findall(r"UserError: (.+)", message):  # of another process, with its traceback as text
        return str(inner[-1])
    if isinstance(error, UserError):
        return message
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory; lower data.batch_size or data.eval_batch_size ({message.partition('.')[0]})"
    if type(error).__module__.startswith("wandb."):
        return f"logger.wandb: {message} Without an account: logger.wandb.offline=true"
    if isinstance(error, KeyError):
        return f"the config has no option {message}; {_kept(error)}"
    if type(error).__name__ == "MisconfigurationException":
        return f"trainer: {message}"
    return f"unexpected {type(error).__name__}: {message[:300]}; {_kept(error)}"


def _kept(error: Exception) -> str:
    """Writes the traceback to a file, and says where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="robustfg-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"set {TRACEBACK}=1 to see where"
    return f"the traceback is in {file.name}, or set {TRACEBACK}=1"


def _composing(error: Exception) -> str:
    """What is to be said of an error while options are composed that is none of Hydra's or OmegaConf's."""
    if isinstance(error, YAMLError):
        return f"cannot read the option file: {error}"
    if str(error).startswith("Config group override must be"):  # such as attack=null or attack=3
        for word in sys.argv[1:]:
            group, _, value = word.lstrip("+").partition("=")
            place = group.partition("@")[0]
            if (CONF / place).is_dir() and place and (value == "null" or not value.isidentifier()):
                return no_value(group, value, (path.stem for path in (CONF / place).glob("*.yaml")))
    return _plain(error)


def _line(message: str) -> str:
    """The last line of a command that fails."""
    return printable(f"robustfg: {' '.join(message.split())}").replace("robustfg: robustfg: ", "robustfg: ")


def told(error: Exception, command: str, words: list[str]) -> str:
    """What a user needs to know of an error of Hydra's or OmegaConf's.

    Args:
        error: what was raised.
        command: name of the primary config.
        words: overrides on the command line.
    """
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        return no_value(group, value, error.options or ())
    if isinstance(error, OverrideParseException):
        return f"cannot read the option {error.override}: {error.message.splitlines()[0]}"
    if missing := _missing(error):
        return str(NoOptionError(missing, names_of(_without(missing, command, words))))
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        if "is not Optional" in str(cause):
            return f"{cause.full_key} cannot be null; leave it out"
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return "; ".join(line.strip() for line in str(error).replace("\\'", "'").splitlines() if line.strip())


def no_value(group: str, value: str, options: Iterable[str]) -> str:
    """What to say of a choice that a group does not have: where else it is one, the closest ones, and all of them."""
    options = sorted(options)
    if package := EXTRAS.get(group.partition("@")[0], {}).get(value):
        return f"no {group}={value}; it comes with another package: pip install {package}"
    elsewhere = sorted(
        f"{path.parent.relative_to(CONF)}={value}" for path in CONF.rglob(f"{value}.yaml") if path.parent != CONF
    )
    close = sorted(options, key=lambda option: -alike(value, option))[:3]
    hint = "choose one" if value == "null" else f"closest are {', '.join(close)}"
    if elsewhere:
        hint = f"{' and '.join(elsewhere)} exist{'' if len(elsewhere) > 1 else 's'}"
    return f"no {group}={value}; {hint}; all of {group}: {', '.join(options)}"


def _missing(error: Exception) -> str | None:
    """The option that an error of Hydra's says there is not."""
    found = re.match(r"Could not override '([^']+)'", str(error))
    return found and found[1]


def _added(error: Exception, command: str) -> bool:
    """Adds an option to the config that no YAML file lists but whose constructor takes it; false where none does."""
    option = _missing(error)
    words = sys.argv[1:]
    places = [place for place, word in enumerate(words) if option and key_of(word) == option]
    if not places or not _takes(_without(str(option), command, words), str(option)):
        return False
    for place in places:
        sys.argv[1 + place] = f"+{words[place]}"
    return True


def _takes(config: Mapping[str, Any], option: str) -> bool:
    """Whether the constructor that an option would go to takes it, or one above it takes options of any name."""
    *parents, name = option.split(".")
    node: Any = config
    above: tuple[Any, str] = None, ""
    for parent in parents:
        above = node, parent
        node = node.get(parent) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return False
    try:
        if "_target_" in node:
            return name in inspect.signature(get_object(node["_target_"])).parameters
        maker = get_object(above[0]["_target_"])
        hint = typing.get_type_hints(
            inspect.getattr_static(maker, "__init__") if isinstance(maker, type) else maker
        ).get(above[1])
    except Exception:  # importing can fail in any way, and the names in annotations too
        return False
    members = typing.get_args(hint) or (hint,)
    return any(
        isinstance(kind := typing.get_origin(part) or part, type) and issubclass(kind, Mapping)
        for part in (hint, *members)
    )


def _without(option: str, command: str, words: list[str]) -> dict[str, Any]:
    """The config composed without options that there are not, with the choices of the command line."""
    right = [word if "[" in word else word.partition(",")[0] for word in words if key_of(word)]  # of a sweep the first
    with initialize_config_dir(str(CONF), version_base="1.3"):
        while True:
            right = [word for word in right if key_of(word) != option]
            try:
                composed = compose(command, overrides=[*right, *_searched()])
                return cast(dict[str, Any], OmegaConf.to_container(composed))
            except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
                if not right:
                    return {}
                missing = _missing(error)  # a second mistake, of the same kind or another
                option, right = (missing, right) if missing and missing in map(key_of, right) else ("", [])


def _searched() -> list[str]:
    """The folder of own options that the command line names, for ``compose``."""
    for flag, folder in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, _, joined = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            return [f"hydra.searchpath=['file://{Path(joined or folder).absolute()}']"]
    return []
