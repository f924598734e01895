"""Where conf/ lies, the root schema, and build(): the only place that instantiates what a config names."""

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
from omegaconf.errors import OmegaConfBaseException

from robustfg.arguments import refuse_unfit
from robustfg.errors import UserError
from robustfg.option_names import NoOptionError
from robustfg.processes import default_name

_PACKAGE = Path(__file__).parent
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
    except OmegaConfBaseException as error:
        place = f" (option {error.full_key})" if error.full_key else ""
        raise UserError(f"config: {str(error).splitlines()[0]}{place}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


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
        UserError: where a constructor does not take what the node gives it.
    """
    if not isinstance(node, Mapping):
        raise NoOptionError(option)
    _refuse_unfit_parts(node, option)
    try:
        return instantiate(dict(node), _convert_="all", **arguments)
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from cause
        if isinstance(cause, TypeError | ValueError | InstantiationException):
            raise UserError(f"{option}: {str(cause).splitlines()[0]}") from cause
        raise


def _refuse_unfit_parts(node: Any, option: str) -> None:
    """``refuse_unfit`` on a node and everything nested in it."""
    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in parts:
        _refuse_unfit_parts(value, f"{option}.{key}")
    if isinstance(node, Mapping) and "_target_" in node:
        try:
            target = get_object(node["_target_"])
        except Exception:  # importing can fail in any way, and instantiating tells it
            return
        given = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
        refuse_unfit(target, given, option)


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
