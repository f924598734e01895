"""The steps of the commands: fit, test, and the files they leave in a run's folder."""

import errno
import json
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from robustfg.checkpoint import Checkpoint
from robustfg.classifier import Classifier
from robustfg.cli.config import to_yaml
from robustfg.cli.folder import write_hydra
from robustfg.cli.processes import is_first, is_lasting, starter
from robustfg.cli.provenance import provenance
from robustfg.cli.splits import follow_start
from robustfg.core.errors import UserError
from robustfg.core.files import write_text
from robustfg.core.text import printable
from robustfg.data.datamodule import DataModule
from robustfg.evaluation import RobustnessEvaluation
from robustfg.evaluation.fingerprint import weights_sha256
from robustfg.reporting import print_summary, write_page
from robustfg.training.continuing import LastCheckpoint
from robustfg.training.stopping import RequeueException, requeue, requeue_signal

UNHELPFUL = (
    ".*LeafSpec.*",
    ".*your dataloader is not resumable.*",  # ours is, through the data module's state
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    r'.*Please add the following callbacks: \["ModelCheckpoint.*"\]\.',  # wrote last.ckpt in earlier versions
    ".*It is recommended to use `self.log.*sync_dist.*",  # what is logged is already summed over all processes
)
"""Warnings of libraries on which the user cannot act."""


STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EFBIG}
"""What can happen to files while a command runs."""


def begin(seed: int) -> None:
    """Seeds Python, NumPy, torch and the loaders' processes (0 counts), and silences what tells the user nothing."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be in [0, 2^32), got {seed}")
    starter()
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in UNHELPFUL:
        warnings.filterwarnings("ignore", text)


def look_back(config: Mapping[str, Any], trainer: pl.Trainer, last: Path) -> None:
    """Refuses what a run cannot be continued with, before anything is written.

    TensorBoard is told to forget the steps that are trained again.
    """
    best = last.with_name("best.ckpt")
    if not last.exists():
        if best.exists():
            raise UserError(f"{last} is missing beside {best}; put it back, or choose another run_name")
        return
    checkpoint = Checkpoint.read(last, f"run_name={config['run_name']}: the checkpoint to continue from")
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs < checkpoint.epochs:
        raise UserError(
            f"run_name={config['run_name']} has been trained for {checkpoint.epochs} epochs; set trainer.max_epochs >= "
            f"{checkpoint.epochs}, or another run_name"
        )
    path = last.parents[1] / "config.yaml"
    if not path.exists():
        say(f"{path} was missing and is written anew; {last} was asked for the same")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = checkpoint.steps


def start_from(
    config: Mapping[str, Any], classifier: Classifier, data: DataModule, folder: Path
) -> dict[str, str] | None:
    """Puts the weights of ``init_from`` into the classifier of a new run; a continued one has its own.

    Returns:
        What is to be recorded about them: the file and a hash of the weights.
    """
    if config["init_from"] is None:
        return None
    origin = folder / "provenance.json"
    if (folder / "checkpoints" / "last.ckpt").exists():  # what it began with was recorded then
        return json.loads(origin.read_text()).get("init_from") if origin.exists() else None
    checkpoint = Checkpoint.read(config["init_from"], "init_from")
    checkpoint.expect_classes(tuple(classifier.stored["classes"]))
    checkpoint.load_into(classifier)
    follow_start(data, config["data"], checkpoint)
    say(f"Starting from {checkpoint.path}")
    return {"checkpoint": str(checkpoint.path.resolve()), "weights_sha256": weights_sha256(classifier)}


@rank_zero_only
def write_origin(
    config: Mapping[str, Any],
    folder: Path,
    data: DataModule,
    command: list[str],
    loggers: list[Logger],
    *,
    init_from: Mapping[str, str] | None = None,
) -> None:
    """config.yaml, provenance.json and splits.json, and the config on the dashboards, once for all processes."""
    write_text(folder / "config.yaml", to_yaml(config))
    write_hydra(folder)
    origin = provenance(seed=config["seed"], splits=data.describe(), command=command, init_from=init_from)
    write_text(folder / "provenance.json", json.dumps(origin, indent=1) + "\n")
    write_text(folder / "splits.json", json.dumps(data.splits().as_plain()) + "\n")
    for logger in loggers:
        logger.log_hyperparams(dict(config))
    say(f"Run folder: {folder}")


def fit(trainer: pl.Trainer, classifier: Classifier, data: DataModule, last: Path) -> None:
    """Trains, from ``last`` where it exists.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once ``last`` is written; a second one does not wait for that.
        SIGTERMException: after SIGTERM, likewise; ``RequeueException`` after SLURM's signal.
    """
    if last.exists():
        say(f"Continuing from {last}")
    (keeper,) = (each for each in trainer.callbacks if isinstance(each, LastCheckpoint))  # type: ignore[attr-defined]
    try:
        with keeper.signals.heard(trainer):
            trainer.fit(classifier, data, ckpt_path=last if last.exists() else None, weights_only=True)
    except (SystemExit, ProcessExitedException):
        if keeper.signals.told is None:
            raise
    if keeper.signals.told is not None:
        if keeper.step is not None:
            say(f"{last} holds step {keeper.step}")
        if keeper.signals.requeues:
            raise RequeueException
        raise (KeyboardInterrupt if keeper.signals.told == signal.SIGINT else SIGTERMException)


def load_best(classifier: Classifier, best: Path) -> None:
    """Puts the best checkpoint's weights into the classifier, where one was kept in this run's folder."""
    if best.exists():
        Checkpoint.read(best).load_into(classifier)
    else:
        say(f"There is no {best}, since no epoch was one to choose; the last weights are evaluated")


def best_score(trainer: pl.Trainer) -> float | None:
    """Best value of the monitored metric."""
    best = trainer.checkpoint_callback
    score = best.best_model_score if isinstance(best, ModelCheckpoint) else None
    return None if score is None else float(score)


def test(
    trainer: pl.Trainer, classifier: Classifier, data: DataModule, evaluation: RobustnessEvaluation, folder: Path
) -> float:
    """Runs the robustness evaluation, then shows it: table and page. Returns the worst-case accuracy."""
    (metrics,) = trainer.test(classifier, data, verbose=False)
    if trainer.is_global_zero:
        summary = json.loads((evaluation.folder / "summary.json").read_text())
        print_summary(summary, write_page(folder))
    return metrics["test/robust_accuracy"]


def how_to_continue(config: Mapping[str, Any], folder: Path) -> str:
    """What a stopped command leaves, and how to go on."""
    return f"what is done is kept in {folder}; the same command with run_name={config['run_name']} continues it"


@contextmanager
def stopped_plainly(config: Mapping[str, Any], trainer: pl.Trainer, advice: str) -> Iterator[None]:
    """One line where training or evaluation is stopped from outside: by a signal, or by the death of a process.

    Exit codes are 130 after Ctrl-C, 143 after SIGTERM and SLURM's signal, and 1 otherwise. After SLURM's signal, with
    which ``sbatch --signal=SIGUSR1@90`` asks to stop before the time limit, the job goes back into its queue.

    Args:
        config: of the command.
        trainer: which trains or evaluates.
        advice: how to go on.

    Raises:
        UserError: for the mistake that another process met, or where one has died.
    """
    main = threading.current_thread() is threading.main_thread()
    again = requeue_signal(trainer)
    numbers = [signal.SIGINT, signal.SIGTERM, *([] if again is None else [again])] if main else []
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number in numbers[1:]:
        signal.signal(number, _stop)
    try:
        yield
    except (KeyboardInterrupt, SIGTERMException, SystemExit) as stop:
        interrupted = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        warn(f"{'interrupted' if interrupted else 'stopped'}; {advice}")
        if isinstance(stop, RequeueException) and is_first():
            _put_back(config["run_name"])
        raise SystemExit(130 if interrupted else 143) from None
    except ProcessRaisedException as error:
        if mistakes := re.findall(r"UserError: (.+)", str(error)):
            raise UserError(mistakes[-1]) from None
        raise
    except ProcessExitedException as error:
        raise UserError(f"{error}, so all end; {advice}") from None
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise UserError(
            f"a loader process died ({str(error).splitlines()[0]}); too little memory? Lower data.num_workers; {advice}"
        ) from None
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        raise UserError(
            f"{error.filename or 'a file or the log'} cannot be written: {error.strerror}; {advice}"
        ) from error
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)  # Lightning leaves Ctrl-C ignored


def _stop(number: int, _: Any) -> None:
    raise SIGTERMException if number == signal.SIGTERM else RequeueException


def _put_back(run_name: str) -> None:
    """Puts the SLURM job back into its queue, where the same command goes on with the run."""
    if not is_lasting(run_name):
        warn("the SLURM job is not put back into its queue, since without run_name=… it would begin a run anew")
    elif (failed := requeue()) is not None:
        warn(f"{failed}; give the job again")
    else:
        warn("the SLURM job is back in its queue")


@rank_zero_only
def warn(text: str) -> None:
    """Prints a line on stderr, once for all processes."""
    print(f"robustfg: {printable(text)}", file=sys.stderr, flush=True)


@contextmanager
def dashboards_closed(config: Mapping[str, Any]) -> Iterator[None]:
    """Ends the wandb run whatever happens, or the jobs of a multirun would merge."""
    try:
        yield
    finally:
        if "wandb" in (config["logger"] or {}):
            import wandb

            wandb.finish()


@rank_zero_only
def say(*lines: str) -> None:
    """Prints lines, once for all processes."""
    for line in lines:
        print(printable(line), flush=True)
