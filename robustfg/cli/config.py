"""Where conf/ lies, the root schema, and build(): the only place that instantiates what a config names."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from robustfg.cli.arguments import fitting, refuse_impossible, shown
from robustfg.cli.processes import default_name
from robustfg.cli.suggestions import NoOptionError
from robustfg.core.errors import UserError

_PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())
"""The config tree: inside the package in a wheel, beside it in a checkout."""


@dataclass
class Root:
    """Options of training and evaluation outside the groups; every other key is refused."""

    seed: int = MISSING
    run_name: str = MISSING
    output: str = MISSING
    epsilon: Any = MISSING
    data: Any = MISSING
    model: Any = MISSING
    loss: Any = None
    attack: Any = MISSING
    detector: Any = None
    evaluation: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    experiment: Any = None
    unknown: Any = None


@dataclass
class TrainRoot(Root):
    """Options of ``robustfg.train``."""

    monitor: str = MISSING
    init_from: str | None = None
    test: bool = MISSING
    training: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    callbacks: Any = None


@dataclass
class EvaluateRoot(Root):
    """Options of ``robustfg.evaluate``."""

    checkpoint: str | None = None
    trust: list[str] = field(default_factory=list)


@dataclass
class PredictRoot:
    """Options of ``robustfg.predict``."""

    checkpoint: str | None = None
    images: list[str] = field(default_factory=list)
    detectors: str | None = None
    fpr: float = MISSING
    top: int = MISSING
    format: str | None = None
    to: str | None = None
    trust: list[str] = field(default_factory=list)
    device: str = MISSING
    batch_size: int | None = None
    num_workers: int | None = None


def register_schemas() -> None:
    """Makes the root schemas known to Hydra, with which the primary configs begin, and the resolver they use."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainRoot)
    store.store(name="evaluate_schema", node=EvaluateRoot)
    store.store(name="predict_schema", node=PredictRoot)
    OmegaConf.register_new_resolver("total_epochs", total_epochs, replace=True)
    OmegaConf.register_new_resolver("default_name", default_name, use_cache=True, replace=True)


def total_epochs(phases: Mapping[str, Any] | None, otherwise: int) -> int:
    """Length of training: the sum of the loss's phases, or ``otherwise`` where it has none."""
    lengths = [phase.get("epochs") or 0 for phase in (phases or {}).values() if phase]
    return sum(lengths) or otherwise


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as resolved plain containers. Refuses keys that the root schema does not know, ``+typo=1`` too."""
    schema = OmegaConf.get_type(config)
    known = {entry.name for entry in fields(schema)} if is_dataclass(schema) else set(config)
    for key in sorted(set(map(str, config)) - known):
        raise NoOptionError(key, known)
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is not set; add {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        place = f" (option {error.full_key})" if error.full_key else ""
        raise UserError(f"config: {str(error).splitlines()[0]}{place}") from error
    assert isinstance(container, dict)
    for option, value in container.items():
        refuse_impossible(value, str(option))
    if "run_name" in known and schema is not PredictRoot:
        refuse_run_name(container["run_name"])
        if not container["output"]:
            raise UserError("output must be a folder; . is the present one")
    return {str(key): value for key, value in container.items()}


def refuse_run_name(name: str) -> None:
    """Raises ``UserError`` for a run name that is no name of a folder."""
    if not name.strip() or name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(f"run_name must be the name of a folder, without / and control characters, got {shown(name)}")


def chosen(*groups: str) -> dict[str, str]:
    """Names of the options chosen in some groups, such as ``{"loss": "gm"}``."""
    choices = HydraConfig.get().runtime.choices
    return {group: str(choices[group]) for group in groups if group in choices}


def to_yaml(config: Mapping[str, Any]) -> str:
    """Plain containers as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def from_yaml(path: Path) -> dict[str, Any]:
    """Reads what ``to_yaml`` wrote."""
    return plain(OmegaConf.load(path))  # type: ignore[arg-type]


def build(node: Mapping[str, Any], option: str, /, **arguments: Any) -> Any:
    """Instantiates a node, everything nested in it first.

    Args:
        node: plain containers with ``_target_``.
        option: the option's name, for messages.
        arguments: further plain arguments.

    Raises:
        UserError: where anything goes wrong in a constructor; the message names the option.
    """
    if node is None:
        raise UserError(f"{option} cannot be null; leave it out with ~{option} where it is one of several")
    if not isinstance(node, Mapping):
        raise NoOptionError(option)
    if "_target_" not in node:
        raise UserError(f"{option} has no _target_, which names what it makes")
    fit = _fit(node, option)
    try:
        return instantiate(fit, _convert_="all", **arguments)
    except Exception as error:  # whatever a constructor raises, it is about what it was given
        raise _told_of(error, fit, option) from error


def _fit(node: Any, option: str) -> Any:
    """A node, everything nested in it first, as its constructors take it."""
    refuse_impossible(node, option)
    if isinstance(node, list):
        return [_fit(value, f"{option}.{place}") for place, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    fit = {key: _fit(value, f"{option}.{key}") for key, value in node.items()}
    target = _found(str(node["_target_"])) if "_target_" in node else None
    if target is None:  # instantiating tells why
        return fit
    given = {str(key): value for key, value in fit.items() if not str(key).startswith("_")}
    return fit | fitting(target, given, option, _found)


def _found(target: str) -> Any:
    """What a ``_target_`` names; None where it cannot be imported, which can go wrong in any way."""
    log = logging.getLogger("hydra.utils")
    before, log.disabled = log.disabled, True  # what it says of failures, instantiating says again
    try:
        return get_object(target)
    except Exception:
        return None
    finally:
        log.disabled = before


def _told_of(error: Exception, node: Mapping[str, Any], option: str) -> UserError:
    """A constructor's error as a mistake in an option, which the message names."""
    inside = re.search(r"full_key: ([\w.]+)", str(error)) if isinstance(error, InstantiationException) else None
    keys = inside[1].split(".") if inside else []
    place = ".".join([option, *keys])
    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    message = " ".join(str(cause).split()) or type(cause).__name__
    part: Any = node
    for key in keys:
        part = part[int(key)] if isinstance(part, list) else part.get(key, {})
    first = re.match(r"\w+", message)
    if isinstance(part, Mapping) and first and first[0] in part:
        return UserError(f"{place}.{message}")
    if message.startswith(f"{place.rpartition('.')[2]}."):
        return UserError(f"{place.rpartition('.')[0]}.{message}".removeprefix("."))
    root = option.partition(".")[0]
    named = re.match(rf"{root}\.(\w+)(?= )", message)
    if named and named[1] in node and not keys:  # a constructor knows its group, not its name in it
        return UserError(f"{place}.{message.removeprefix(root + '.')}")
    return UserError(message if re.search(rf"\b{root}[.=]", message) else f"{place}: {message}")


def refuse_sweep_with_ddp(trainer: Mapping[str, Any]) -> None:
    """In a multirun every rank that Lightning starts would begin a sweep of its own."""
    strategy, devices = str(trainer["strategy"]), trainer["devices"]
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    spawned = strategy.endswith(("spawn", "fork", "notebook"))
    if HydraConfig.get().mode == RunMode.MULTIRUN and not spawned and (not one or trainer["num_nodes"] > 1):
        raise UserError(
            f"trainer.strategy={strategy} on several devices cannot run in a multirun: use trainer=ddp_spawn, or one "
            "job per GPU through a launcher (hydra/launcher=submitit_slurm trainer.devices=1)"
        )
