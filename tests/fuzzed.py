"""Every option of every option file with values that it cannot or may not take, as the commands meet them.

All in this process and without a trainer's start: the config is composed once for an option file, changed in one leaf,
and everything is built from it that the commands build before they begin. ``python tests/fuzzed.py`` tries all of them,
and lists with ``accepted`` what was taken; ``python tests/fuzzed.py train:loss=gm predict`` tries some.
"""

import random
import re
import sys
import tempfile
from pathlib import Path

import torch
from commands import config_of
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from robustfg import evaluate, predict
from robustfg.checkpoint import Checkpoint
from robustfg.cli import assemble, rehearsal
from robustfg.cli.config import CONF, plain, register_schemas
from robustfg.core.errors import UserError

register_schemas()
VALUES = {
    "text": "abc", "negative": -1, "zero": 0, "nan": float("nan"), "inf": float("inf"), "1e30": 1e30, "huge": 10**30,
    "empty": "", "null": None, "list": [1, "a"], "options": {"a": 1}, "fraction": 0.37, "true": True,
    "path": "/nowhere/at/all",
}  # fmt: skip
TINY = (
    "experiment=smoke", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "run_name=r",
    "data.max_test_samples=10",
)  # fmt: skip
ASKED = {
    "transfer": ["attack.transfer.surrogate=nowhere"], "features": ["attack.features.bank.path=bank.pt"],
    "universal": ["attack.universal.path=universal.pt"],
}  # fmt: skip
"""What the user must say."""
NEEDS = {
    "attack": (), "detector": ("attack=fgsm",), "training": ("trainer.max_epochs=40",), "evaluation": (),
    "loss": ("trainer.max_epochs=40",),
}  # fmt: skip
NO_DATA_HERE = {"cub", "cars", "aircraft", "dogs", "flowers", "pets", "nabirds", "inaturalist", "cifar10", "cifar100",
                "mnist", "fashion_mnist", "folder"}  # fmt: skip
LARGE = {"resnet18", "resnet34", "resnet50", "vgg16", "vgg19", "convnext_tiny", "vit_small", "efficientnet_lite0"}
GROUPS = ("attack", "callbacks", "data", "detector", "evaluation", "logger", "loss", "model", "optimizer", "scheduler",
          "trainer", "training", "unknown", "loss/covariance", "loss/priors", "loss/initial_means")  # fmt: skip


EVALUATED = ("data", "evaluation", "logger", "loss", "model", "trainer")
"""Groups whose options ``evaluate`` meets otherwise than ``train``."""


def option_files():
    """``(command, group, option)`` of every option file, and of the options outside the groups."""
    found = [("train", group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
    found = [entry for entry in found if entry[2] not in ("stored", "csv", "none", "wandb")]
    stored = {"data": "stored", "loss": "stored", "model": "stored", "logger": "tensorboard"}
    found += [("evaluate", group, stored.get(group, "default")) for group in EVALUATED]
    return found + [(command, "", "") for command in ("train", "evaluate", "predict")]


def composed(command, group, name, cache):
    if command == "predict":
        words = [f"checkpoint={cache.checkpoint}", "device=cpu", "num_workers=0"]
    elif command == "evaluate":
        words = [*TINY[1:], f"checkpoint={cache.checkpoint}", "attack=fgsm", "evaluation.checks=4"]
        words += [f"{group}={name}"] if group else []
    else:
        words = [*TINY, *NEEDS.get(group, ()), *ASKED.get(name, [])]
        if group.startswith("loss/"):
            words.append("loss=gm")
        if group == "callbacks":
            words += [f"callbacks=[default,{name}]" if name != "default" else "callbacks=default"]
        elif group == "unknown":
            words += [f"unknown={name}", "detector=energy", "data=birds", "data.source.train=64", "data.source.test=32",
                      "data.image_size=24"]  # fmt: skip
        else:
            words += [f"{group}={name}"] if group else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, overrides=words)


def leaves(node, path=""):
    """Names of all leaves, and of the parts that hold them."""
    for key in node:
        name = f"{path}.{key}" if path else str(key)
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            yield name
            yield from leaves(child, name)
        elif not str(key).startswith("_"):
            yield name


OUTSIDE = {
    "train": ["seed", "output", "epsilon", "monitor", "init_from", "test", "run_name"],
    "evaluate": ["seed", "output", "epsilon", "checkpoint", "trust", "run_name"],
    "predict": [
        "checkpoint",
        "detectors",
        "fpr",
        "top",
        "format",
        "to",
        "trust",
        "device",
        "batch_size",
        "num_workers",
    ],
}
"""Options outside the groups."""


def options_of(command, group, name, cache):
    config = composed(command, group, name, cache)
    top = group.partition("/")[0]
    return config, list(leaves(config[top], top)) if group else OUTSIDE[command]


ACCEPTED, REFUSED = "accepted", "refused"


class Cache:
    """What does not depend on the option that is tried."""

    def __init__(self, folder):
        config = config_of("train", *TINY)
        self.folder = folder
        self.data = assemble.data_of(config)
        self.classifier = assemble.classifier_of(config, self.data.classes)
        self.checkpoint = folder / "made.ckpt"
        torch.save({"robustfg": self.classifier.stored, "state_dict": self.classifier.state_dict()}, self.checkpoint)


def build(command, config, group, cache):
    """Builds what a command builds before it begins."""
    {"train": trained, "evaluate": evaluated, "predict": predicted}[command](config, group, cache)


def predicted(config, group, cache):
    to = cache.folder / "rows.csv" if config["to"] is None else str(cache.folder / str(config["to"]))
    predict.predict(config | {"to": to}, ["/nowhere.png"])


def evaluated(config, group, cache):
    assemble.refuse_unkept(assemble.node_of(config, "trainer"))
    checkpoint = Checkpoint.read(config["checkpoint"])
    config = evaluate.with_stored(config, checkpoint.config)
    data = assemble.data_of(config)
    checkpoint.expect_classes(data.classes)
    classifier = assemble.classifier_of(config, checkpoint.classes)
    checkpoint.load_into(classifier)
    evaluation = assemble.evaluation_of(config, cache.folder, data)
    loggers = assemble.loggers_of(config, cache.folder)
    trainer = assemble.trainer_of(config, cache.folder, [evaluation], loggers)
    rehearsal.rehearse_evaluation(trainer, classifier, data, evaluation)


def trained(config, group, cache):
    """What a group of options changes of what ``train`` builds, and one step."""
    top = group.partition("/")[0]
    everything = top in ("", "data", "unknown")
    data = assemble.data_of(config) if everything else cache.data
    again = everything or top in ("model", "loss", "training", "optimizer", "scheduler")
    classifier = assemble.classifier_of(config, data.classes) if again else cache.classifier
    evaluation = assemble.evaluation_of(config, cache.folder, data)
    callbacks = [evaluation, *assemble.validation_of(config, data), *assemble.callbacks_of(config)]
    loggers = assemble.loggers_of(config, cache.folder)
    trainer = assemble.trainer_of(config, cache.folder, callbacks, loggers)
    rehearsal.rehearse_training(trainer, classifier, data, evaluation, config["monitor"])
    if again:
        step(classifier, data, trainer)


def step(classifier, data, trainer):
    """One step of training by hand, at the beginning, with a batch of two."""
    batch = [torch.stack([torch.as_tensor(data.samples("train")[i][part]) for i in (0, 1)]) for part in range(3)]
    from robustfg.core.types import Batch

    classifier.loss.epoch = 0.5
    terms = classifier.regime(classifier, classifier.loss, Batch(*batch), 0, 0)
    classifier.schedule(0.5, trainer.max_epochs)
    classifier._optimizer_of(classifier.parameters())
    assert "loss" in terms


def fault(command, config, option, value, group, cache):
    """What is wrong with how the commands take a value: ACCEPTED, REFUSED in one line that names it, or the fault."""
    changed = config.copy()
    try:
        OmegaConf.set_struct(changed, False)
        with open_dict(changed):
            OmegaConf.update(changed, option, value, merge=False, force_add=True)
        node = plain(changed)
        if command != "predict":
            node |= {"names": {"data": "digits", "loss": "softmax", "model": "tiny", "attack": "x"}}
    except UserError as error:
        return judged(str(error), option)
    except Exception as error:
        from omegaconf.errors import OmegaConfBaseException

        return REFUSED if isinstance(error, OmegaConfBaseException) else f"compose {type(error).__name__}: {error}"
    try:
        build(command, node, group, cache)
    except UserError as error:
        return judged(str(error), option)
    except Exception as error:
        place = error.__traceback__
        while place.tb_next and "robustfg/robustfg" not in place.tb_next.tb_frame.f_code.co_filename:
            place = place.tb_next
        last = error.__traceback__
        while last.tb_next:
            last = last.tb_next
        where = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
        return f"{type(error).__name__}: {str(error)[:120]!r} at {where}"
    return ACCEPTED


def judged(message, option):
    if "\n" in message:
        return f"several lines: {message!r}"
    parts = option.split(".")
    named = any(
        re.search(rf"\b{re.escape(part)}\b", message) for part in (option, parts[-1], ".".join(parts[:2]), parts[0])
    )
    return REFUSED if named else f"names no option: {message!r}"


def small(group, name):
    """Whether an option can be built here at once, without files or a large network."""
    return not (name in NO_DATA_HERE and group in ("data", "unknown")) and not (group == "model" and name in LARGE)


def sweep(files, pick=lambda combinations: combinations, accepted=None):
    """``(option file, option, kind of value, fault)`` of those combinations of option and value that ``pick`` takes."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        for command, group, name in files:
            config, names = options_of(command, group, name, cache)
            for option, kind in pick([(option, kind) for option in names for kind in VALUES]):
                found = fault(command, config, option, VALUES[kind], group, cache)
                if found == ACCEPTED and accepted is not None:
                    accepted.append((f"{command}:{group}={name}", option, kind))
                elif found not in (ACCEPTED, REFUSED):
                    yield f"{command}:{group}={name}", option, kind, found


def sample(each):
    """Faults of so many combinations of one option file of each group, the same every time."""
    drawn = random.Random(0)
    by_group = {}
    for entry in option_files():
        if small(*entry[1:]):
            by_group.setdefault(entry[:2], []).append(entry)
    files = [drawn.choice(entries) for entries in by_group.values()]
    return list(sweep(files, lambda combinations: drawn.sample(combinations, min(each, len(combinations)))))


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    words, accepted, faults = [word for word in sys.argv[1:] if word != "accepted"], [], 0
    chosen = [entry for entry in option_files() if small(*entry[1:])]
    if words:
        chosen = [entry for entry in chosen if any(f"{entry[0]}:{entry[1]}={entry[2]}".startswith(w) for w in words)]
    for line in sweep(chosen, accepted=accepted):
        faults += 1
        print(" ".join(line), flush=True)
    if "accepted" in sys.argv:
        print(*(" ".join(entry) for entry in accepted), sep="\n")
    print(f"{faults} faults, {len(accepted)} accepted")
