"""A run that is stopped or killed anywhere, and given again, ends as one that never was."""

import resource
import shutil
import signal
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import small_phases
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.utilities.exceptions import SIGTERMException
from small_classifiers import classifier, data, guard, pgd, trainer
from toy import Convolutions
from two_ranks import found_by_two

from robustfg.core.errors import UserError
from robustfg.reporting.csv_logger import MetricsCsv
from robustfg.training import Fast, Free, Phase, Phases
from robustfg.training.callbacks import WarmedEma
from robustfg.training.continuing import LastCheckpoint
from robustfg.training.selection import BestCheckpoint, LastPhaseStopping


class Killed(BaseException):
    """In the place of kill -9: what it leaves on the disk is copied before."""


class Planted(pl.Callback):
    """Scores that rise and then fall, whatever the machine computes."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("planted", -abs(trainer.global_step - 8.0))


class Event(pl.Callback):
    """Tells the run to stop, or kills it, at the first call of a hook from some epoch and batch on."""

    def __init__(self, folder, keep, how, hook, epoch, batch=0):
        self.done = False

        def act(loop, *rest):
            if self.done or (loop.current_epoch, loop.fit_loop.batch_idx) < (epoch, batch):
                return
            self.done = True
            if how == "tell":
                keep.signals.told = signal.SIGTERM
            else:
                shutil.copytree(folder, folder.with_name("disk"))
                raise Killed

        setattr(self, hook, act)


def free():
    return classifier(Free(epsilon="16/255", replays=2))


def watched():
    return classifier(Fast(attack={"fast": pgd(1, "fast", "1.25*eps")}, guard=guard(checks_per_epoch=3, drop=0.99)))


def phased():
    last = Phase(name="last", epochs=2, lr={"backbone": None}, surveys=["means"], fresh_optimizer=True, selects=True)
    plan = Phases((*small_phases.phases().phases[:2], last))
    return small_phases.classifier(plan, Convolutions, dropout=0.5)


SETTINGS = {
    "averaged, accumulated and stopped early": (free, True, 1, {"accumulate_grad_batches": 4, "max_epochs": 6}),
    "validated twice an epoch": (
        watched, True, 2, {"val_check_interval": 0.5, "accumulate_grad_batches": 3, "max_epochs": 7}
    ),
    "validated every second epoch in phases": (phased, True, None, {"check_val_every_n_epoch": 2, "max_epochs": 5}),
    "validated after so many batches over all epochs": (
        phased, False, None, {"check_val_every_n_epoch": None, "val_check_interval": 4, "max_epochs": 5}
    ),
}  # fmt: skip
EVENTS = [
    ("tell", "on_train_batch_end", 0, 1),
    ("kill", "on_train_batch_end", 0, 4),
    ("tell", "on_validation_batch_end", 0),
    ("kill", "on_validation_batch_end", 1),
    ("tell", "on_validation_epoch_end", 1),
    ("kill", "on_validation_end", 2),
    ("tell", "on_train_batch_end", 1, 5),
    ("kill", "on_train_epoch_end", 1),
    ("tell", "on_train_epoch_end", 1),
    ("tell", "on_train_batch_start", 2, 0),
    ("kill", "on_train_batch_start", 2, 3),
    ("tell", "on_train_batch_start", 3, 5),
    ("kill", "on_train_end", 3),
    ("kill", "on_train_end", 5),
]


def train(folder, make, averaged, patience, options, event=None):
    """One process's part of a run; whether it was stopped."""
    keep = LastCheckpoint(folder / "last.ckpt")
    callbacks = [keep, Planted(), LearningRateMonitor("epoch"), *([WarmedEma(decay=0.9)] if averaged else [])]
    same = {"monitor": "planted", "mode": "max"}
    callbacks.append(BestCheckpoint(folder, **same, filename="best", enable_version_counter=False))
    if patience:
        callbacks.append(LastPhaseStopping(**same, patience=patience, check_finite=False))
    if event is not None:
        callbacks.append(Event(folder, keep, *event))
    loop = trainer(
        callbacks=callbacks, enable_checkpointing=True, precision="32-true", logger=MetricsCsv(folder / "metrics.csv"),
        log_every_n_steps=2, limit_val_batches=2, limit_train_batches=6, gradient_clip_val=0.5, **options,
    )  # fmt: skip
    last = folder / "last.ckpt"
    torch.manual_seed(99 if last.exists() else 0)
    model, module = make(), small_phases.data() if make is phased else data()
    try:
        loop.fit(model, module, ckpt_path=last if last.exists() else None, weights_only=True)
    except SIGTERMException:
        return loop, model
    except Killed:
        shutil.rmtree(folder)
        folder.with_name("disk").rename(folder)
        return loop, model
    return loop, model


def left(folder):
    """Everything that counts of what a run leaves."""
    found = {}
    for name in ("last", "best"):
        content = torch.load(folder / f"{name}.ckpt", weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"):
            found[name, key] = content.get(key)
        found[name, "place"] = [content[key] for key in ("epoch", "global_step", "whole", "DataModule")]
        loops = content["loops"]["fit_loop"]
        found[name, "loops"] = [loops["epoch_progress"], loops["epoch_loop.batch_progress"]]
        states = content["callbacks"].items()
        found[name, "callbacks"] = {key: value for key, value in states if not key.startswith("BestCheckpoint")}
        (best,) = (value for key, value in states if key.startswith("BestCheckpoint"))
        found[name, "best"] = [best[key] for key in ("best_model_score", "step", "current_score")]
    found["metrics"] = (folder / "metrics.csv").read_text()
    return found


def differing(first, second, place=""):
    """Where two nested containers of tensors differ, bit for bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [place]
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in differing(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [found for key, pair in pairs for found in differing(*pair, f"{place}/{key}")]
    return [] if first == second else [f"{place}: {first} {second}"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_stopped_and_killed_in_many_places_ends_like_one_that_never_was(name, tmp_path):
    settings = SETTINGS[name]
    loop, model = train(tmp_path / "whole", *settings)
    whole = left(tmp_path / "whole")
    if settings[2]:
        assert loop.should_stop  # there is an end to be remembered
    happened = 0
    for event in EVENTS:
        part, _ = train(tmp_path / "parts", *settings, event)
        happened += any(isinstance(each, Event) and each.done for each in part.callbacks)
    assert happened >= 6
    _, again = train(tmp_path / "parts", *settings)
    assert differing(whole, left(tmp_path / "parts")) == []
    assert differing(dict(model.state_dict()), dict(again.state_dict())) == []
    part, _ = train(tmp_path / "parts", *settings)  # given again once it has ended
    assert part.global_step == loop.global_step
    assert differing(whole, left(tmp_path / "parts")) == []


def test_a_best_checkpoint_that_is_missing_is_copied_anew_or_missed(tmp_path):
    settings = (*SETTINGS["averaged, accumulated and stopped early"][:2], None, {"max_epochs": 2})
    train(tmp_path / "r", *settings)
    best = tmp_path / "r" / "best.ckpt"
    first = best.read_bytes()
    best.write_bytes(first[:1000])  # cut off
    with pytest.raises(UserError, match=r"best\.ckpt is missing or older than .*last\.ckpt says, where"):
        train(tmp_path / "r", *settings)
    best.write_bytes(first)
    train(tmp_path / "one", *settings[:3], {"max_epochs": 1})
    (tmp_path / "one" / "best.ckpt").unlink()
    train(tmp_path / "one", *settings[:3], {"max_epochs": 1})
    assert (tmp_path / "one" / "best.ckpt").read_bytes() == (tmp_path / "one" / "last.ckpt").read_bytes()


def test_validation_inside_an_accumulated_step_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.val_check_interval: .* after every 2 batches .* steps of 4; choose"):
        train(tmp_path, free, False, None, {"val_check_interval": 2, "accumulate_grad_batches": 4})


def test_more_patience_goes_on_with_a_run_that_was_stopped_early(tmp_path):
    make, averaged, _, options = SETTINGS["averaged, accumulated and stopped early"]
    whole, _ = train(tmp_path / "whole", make, averaged, 2, options)
    less, _ = train(tmp_path / "parts", make, averaged, 1, options)
    train(tmp_path / "parts", make, averaged, 2, options)
    assert less.global_step < whole.global_step
    differ = differing(left(tmp_path / "whole"), left(tmp_path / "parts"))
    assert [place for place in differ if "Stopping" not in place] == []


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_once_there_is_room(tmp_path):
    settings = SETTINGS["validated every second epoch in phases"]
    train(tmp_path / "whole", *settings)
    train(tmp_path / "parts", *settings, ("tell", "on_train_batch_end", 2, 1))
    files = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # room for the rows, not for a checkpoint
    try:
        with pytest.raises(
            UserError, match=r"last\.ckpt cannot be written: .*; .*last\.ckpt holds step 14, from where"
        ):
            train(tmp_path / "parts", *settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    assert after.keys() == files.keys()
    assert all(after[name] == files[name] for name in files if name.endswith(".ckpt"))
    train(tmp_path / "parts", *settings)
    assert differing(left(tmp_path / "whole"), left(tmp_path / "parts")) == []


def test_a_checkpoint_of_an_earlier_version_is_continued_from(tmp_path):
    """It was written in a hook of the next batch, when Lightning's counters do not agree with each other."""
    settings = SETTINGS["averaged, accumulated and stopped early"]
    train(tmp_path / "whole", *settings)
    train(tmp_path / "parts", *settings, ("tell", "on_train_batch_end", 1, 2))
    last = tmp_path / "parts" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["whole"]
    content["epoch"] = 1
    loops = content["loops"]["fit_loop"]
    assert [loops["epoch_progress"]["current"][key] for key in ("ready", "processed")] == [2, 1]
    for scope in ("total", "current"):
        loops["epoch_loop.batch_progress"][scope]["ready"] += 1
    content["callbacks"] = {
        key: {name: value for name, value in state.items() if name != "step"} if "BestCheckpoint" in key else state
        for key, state in content["callbacks"].items()
    }
    torch.save(content, last)
    train(tmp_path / "parts", *settings)
    differ = differing(left(tmp_path / "whole"), left(tmp_path / "parts"))
    assert [place for place in differ if not place.startswith("/('best', 'callbacks')")] == []


def test_a_loss_that_is_not_finite_is_not_saved_on_a_stop(tmp_path):
    def spoilt():
        model = free()
        loss = model.loss.loss

        def spoil(output, label):
            factor = float("nan") if model.global_step == 10 else 1.0
            return {name: factor * value for name, value in loss(output, label).items()}

        model.loss.loss = spoil
        return model

    train(tmp_path, free, False, None, {"max_epochs": 2}, ("kill", "on_train_batch_end", 1, 1))
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match="the loss is not finite"):
        train(tmp_path, spoilt, False, None, {"max_epochs": 2}, ("tell", "on_train_batch_end", 1, 4))
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, UserError])
def test_handlers_of_signals_are_put_back(ending):
    handlers = {signal.SIGTERM: lambda *_: None, signal.SIGINT: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signals, loop = LastCheckpoint("last.ckpt").signals, trainer()
    try:
        with suppress(*([ending] if ending else [])), signals.heard(loop):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert signals.told == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):  # the second time
                signal.raise_signal(signal.SIGINT)
            if ending:
                raise ending
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_rows_that_a_kill_left_incomplete_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    for text, rows in [
        ("step,epoch,a\n1,0,2.5\n2,0,3.2", 1),
        ("step,epoch,a\n1,0,2.5\n2,0\n3,0,1\n", 1),
        ("step,epoch,a\n1,0,2.5\n\0\0\0\n", 1),
        ("", 0),
        ("step,ep", 0),
    ]:
        path.write_text(text)
        assert MetricsCsv(path).position() == rows
    log = MetricsCsv(path)
    with pytest.warns(UserWarning, match=r"metrics\.csv has lost 4 of 4 rows"):
        log.rewind(4)


@pytest.mark.process
def test_two_processes_of_which_one_is_told_stop_together_and_continue_to_the_same_weights(tmp_path):
    for found in found_by_two("stopped_ranks.py", tmp_path):
        assert [found[part]["stopped"] for part in ("whole", "first", "second")] == [False, True, False]
        assert found["first"]["step"] == 4  # the first of three steps in the second epoch
        assert differing(found["whole"]["weights"], found["second"]["weights"]) == []
