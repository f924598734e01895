"""How commands end at a mistake of the user's: in plain words, with exit code 1 and without traceback."""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustfg.config import CONF
from robustfg.errors import UserError
from robustfg.option_names import NoOptionError, alike, names_of


@contextmanager
def mistakes_told(command: str) -> Iterator[None]:
    """Ends a command whose options cannot be composed with one plain line and exit code 1.

    Args:
        command: name of its primary config.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors then, instead of printing them
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
        raise SystemExit(f"robustfg: {told(error, command, words).removeprefix('robustfg: ')}") from None


@contextmanager
def told_plainly(config: DictConfig) -> Iterator[None]:
    """Ends the command with a ``UserError``'s message and exit code 1, without traceback.

    Args:
        config: as composed, where options with similar names are looked for.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error, NoOptionError):
            error = error.among(names_of(cast(dict[str, Any], OmegaConf.to_container(config))))
        message = str(error)
        if "DataLoader worker process" in message:  # a worker's error carries its traceback as text
            message = message.rsplit("UserError: ", 1)[-1].strip()
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on
            raise CompactHydraException(f"robustfg: {message}") from None
        raise SystemExit(f"robustfg: {message}") from None


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
    if missing := re.match(r"Could not override '([^']+)'", str(error)):
        return str(NoOptionError(missing[1], known(command, missing[1], words)))
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return "; ".join(line.strip() for line in str(error).replace("\\'", "'").splitlines() if line.strip())


def no_value(group: str, value: str, options: Iterable[str]) -> str:
    """What to say of a choice that a group does not have: where else it is one, the closest ones, and all of them."""
    elsewhere = sorted(
        f"{path.parent.relative_to(CONF)}={value}" for path in CONF.rglob(f"{value}.yaml") if path.parent != CONF
    )
    close = sorted(options, key=lambda option: -alike(value, option))[:3]
    hint = f"closest are {', '.join(close)}"
    if elsewhere:
        hint = f"{' and '.join(elsewhere)} exist{'' if len(elsewhere) > 1 else 's'}"
    listed = textwrap.fill(f"{group}: {', '.join(sorted(options))}", 100)
    return f"no {group}={value}; {hint}\n{listed}"


def known(command: str, option: str, words: list[str]) -> list[str]:
    """Names of the options that there are beside one that there is not, with the choices of the command line."""
    right = [word for word in words if word.lstrip("+~").partition("=")[0] != option]
    for overrides in (right, []):  # there may be a second mistake
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = compose(command, overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        return list(names_of(cast(dict[str, Any], OmegaConf.to_container(composed))))
    return []
