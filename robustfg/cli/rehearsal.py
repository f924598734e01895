"""What can be refused before training or an evaluation starts is refused here."""

import inspect
import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import urlsplit

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from robustfg.attacks import Attack, Objective
from robustfg.classifier import Classifier
from robustfg.cli.processes import is_first
from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.types import Output
from robustfg.data.datamodule import DataModule
from robustfg.evaluation import RobustnessEvaluation
from robustfg.training.selection import BestCheckpoint

OTHERWISE = {
    "callbacks": "choose them by callbacks=[default,ema]",
    "logger": "choose one by logger=wandb",
    "default_root_dir": "set output",
    "limit_test_batches": "set data.max_test_samples",
    "limit_predict_batches": "robustfg.predict takes the images it is given",
    "fast_dev_run": "take experiment=smoke, or trainer.limit_train_batches",
    "overfit_batches": "set trainer.limit_train_batches",
    "barebones": "set trainer.enable_progress_bar=false",
}
"""Arguments of Lightning's trainer that the commands set or cannot keep, and what to do instead."""

NUMBERS: dict[str, dict[str, float]] = {
    "max_epochs": {"least": 1},
    "num_nodes": {"least": 1},
    "gradient_clip_val": {"least": 0},
    "accumulate_grad_batches": {"least": 1},
    "check_val_every_n_epoch": {"least": 1},
    "val_check_interval": {"above": 0},
    "limit_train_batches": {"above": 0},
    "limit_val_batches": {"above": 0},
    "log_every_n_steps": {"least": 0},
    "num_sanity_val_steps": {"least": -1},
}
"""Ranges that Lightning does not check."""

PRECISIONS = ("32-true", "32", 32, "16-mixed", "16", 16, "bf16-mixed", "bf16", None)
"""Precisions that keep float32 weights, which the evaluation needs."""


def refuse_unkept(trainer: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for options of the trainer that a command cannot keep.

    Args:
        trainer: the trainer's node.
    """
    for option, instead in OTHERWISE.items():
        if trainer.get(option) not in (None, False):
            raise UserError(f"trainer.{option} cannot be set; {instead}")
    if trainer.get("enable_checkpointing") is False:
        raise UserError(
            "trainer.enable_checkpointing=false: last.ckpt is always written, so that a run can be continued; "
            "~callbacks.checkpoint leaves out best.ckpt"
        )
    if trainer.get("use_distributed_sampler"):
        raise UserError("trainer.use_distributed_sampler must be false: the data module's own samplers are exact")
    for option, bounds in NUMBERS.items():
        value = trainer.get(option)
        if isinstance(value, int | float) and not isinstance(value, bool):
            refuse_outside(f"trainer.{option}", value, **bounds)
    if isinstance(steps := trainer.get("max_steps"), int) and steps != -1:
        refuse_outside("trainer.max_steps", steps, least=1)
    longest = trainer.get("max_epochs")
    for option in ("min_epochs", "check_val_every_n_epoch"):
        if isinstance(longest, int) and isinstance(value := trainer.get(option), int) and value > longest:
            raise UserError(f"trainer.{option} must be <= trainer.max_epochs={longest}, got {value}")
    if (precision := trainer.get("precision")) not in PRECISIONS and precision in KNOWN:
        raise UserError(
            f"trainer.precision must be 32-true, 16-mixed or bf16-mixed, got {precision}: the evaluation needs float32 "
            "weights"
        )


KNOWN = ("16-true", "bf16-true", "64-true", "64", 64, "transformer-engine", "transformer-engine-float16")
"""Lightning's other precisions."""


def refuse_unknown_account(node: Any) -> None:
    """Raises ``UserError`` where Weights & Biases would ask for a key in the middle of the command.

    Args:
        node: the logger's.
    """
    if not isinstance(node, Mapping) or node.get("offline") or not is_first():
        return
    import wandb  # only where it is wanted

    settings = wandb.setup().settings
    if settings.mode not in ("online", "shared") or settings.api_key or settings.identity_token_file:
        return
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(str(urlsplit(settings.base_url).hostname))
    except (OSError, netrc.NetrcParseError):
        known = None
    if known is None:
        raise UserError(
            "logger.wandb: no account is known here; run wandb login, set WANDB_API_KEY, or keep the run on this "
            "machine with logger.wandb.offline=true"
        )


def rehearse_training(
    trainer: pl.Trainer, classifier: Classifier, data: DataModule, evaluation: RobustnessEvaluation | None, monitor: str
) -> None:
    """Raises ``UserError`` for what would end a training, or the evaluation after it, later.

    Args:
        trainer: with its callbacks.
        classifier: with fresh weights.
        data: the data module.
        evaluation: what follows; None where ``test`` is false.
        monitor: the metric that chooses best.ckpt.
    """
    classifier.refuse_epochs(trainer.max_epochs)
    data.refuse_small(trainer.world_size, ("train", "val"))
    _refuse_batches(
        trainer, {"train": data.batches("train", trainer.world_size), "val": data.batches("val", trainer.world_size)}
    )
    logged = {"val/accuracy", "val/loss", monitor}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint):
            _refuse_useless(callback)
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            _refuse_unlogged(callback, logged)
    if evaluation is not None:
        rehearse_evaluation(trainer, classifier, data, evaluation)


def rehearse_evaluation(
    trainer: pl.Trainer, classifier: Classifier, data: DataModule, evaluation: RobustnessEvaluation
) -> None:
    """Raises ``UserError`` for what would end an evaluation later.

    Args:
        trainer: knows the number of processes.
        classifier: trained or not; two grey images are classified.
        data: the data module.
        evaluation: with its attacks and detectors.
    """
    data.refuse_small(trainer.world_size, (evaluation.split,))
    evaluation.refuse_unfit(data)
    detectors = evaluation.detection.detectors.values() if evaluation.detection else ()
    layers = tuple(dict.fromkeys(name for detector in detectors for name in detector.layers))
    output, label = _answer(classifier, data.image_size, layers)
    for name, attack in evaluation.given.items():
        for objective in _objectives(attack):
            try:
                objective(output, label)
            except UserError as error:
                raise UserError(f"attack.{name} cannot be run on this model: {error}") from error


def _refuse_batches(trainer: pl.Trainer, batches: Mapping[str, int]) -> None:
    """Raises ``UserError`` for limits that leave no batch, and for a validation that would never come."""
    for split, count in batches.items():
        limit = getattr(trainer, f"limit_{split}_batches")
        if isinstance(limit, float) and int(limit * count) < 1:
            raise UserError(
                f"trainer.limit_{split}_batches={limit:g} leaves none of {count} batches; set at least {1 / count:.2g}"
            )
    limit, every = trainer.limit_train_batches, trainer.val_check_interval
    count = int(limit * batches["train"]) if isinstance(limit, float) else min(limit, batches["train"])
    if trainer.check_val_every_n_epoch is None:
        return
    if (isinstance(every, float) and int(every * count) < 1) or (isinstance(every, int) and every > count):
        raise UserError(f"trainer.val_check_interval={every:g} does not fit into an epoch of {count} batches")


def _answer(classifier: Classifier, size: int, layers: tuple[str, ...]) -> tuple[Output, Tensor]:
    """What the classifier makes of two grey images, and labels for them."""
    modes = {module: module.training for module in classifier.modules()}
    classifier.eval()
    try:
        with torch.no_grad():
            image = torch.full((2, 3, size, size), 0.5, device=classifier.device)
            return classifier(image, layers), torch.tensor([0, 1], device=classifier.device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model cannot take images of data.image_size={size}: {' '.join(str(error).split())}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _objectives(thing: Any) -> Iterator[Objective]:
    """Every objective of output and label, in an attack and in the attacks in it."""
    if isinstance(thing, Objective) and not isinstance(thing, Attack):
        if list(inspect.signature(thing.__call__).parameters) == ["output", "label"]:  # not those with a target
            yield thing
        return
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif isinstance(thing, Attack) and is_dataclass(thing):
        parts = [getattr(thing, entry.name) for entry in fields(thing)]
    else:
        return
    for part in parts:
        yield from _objectives(part)


def _refuse_useless(callback: BestCheckpoint) -> None:
    """Raises ``UserError`` for a best checkpoint that is not chosen, not kept, or not in the run's folder."""
    if callback.monitor is None:
        raise UserError("callbacks.checkpoint.monitor cannot be null; ~callbacks.checkpoint leaves out best.ckpt")
    if callback.save_top_k == 0:
        raise UserError("callbacks.checkpoint.save_top_k=0 keeps no best.ckpt; ~callbacks.checkpoint leaves it out")
    if not callback.filename or "/" in callback.filename:
        raise UserError(f"callbacks.checkpoint.filename must be a name without /, got {callback.filename}")


def _refuse_unlogged(callback: EarlyStopping | ModelCheckpoint, logged: set[str]) -> None:
    """Raises ``UserError`` where a callback watches what is not logged, or in the wrong direction."""
    option = "callbacks.early_stopping" if isinstance(callback, EarlyStopping) else "callbacks.checkpoint"
    watched = str(callback.monitor)
    if watched not in logged and not watched.startswith("train/"):
        raise UserError(f"{option}.monitor must be one of {', '.join(sorted(logged))}, got {watched}")
    if (watched.endswith("accuracy") and callback.mode != "max") or (
        watched.endswith("loss") and callback.mode != "min"
    ):
        raise UserError(f"{option}.mode={callback.mode} keeps the worst {watched}")
    if isinstance(callback, EarlyStopping):
        refuse_outside(f"{option}.patience", callback.patience, least=1)
