"""Every option of every option file with values that it cannot or may not take, as the commands meet them.

All in this process and without a trainer's start: the config is composed once for an option file, changed in one leaf,
and everything is built from it that the commands build before training. ``python tests/fuzzed.py`` tries all of them.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
from commands import config_of
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from robustfg import assemble, rehearsal
from robustfg.config import CONF, plain, register_schemas
from robustfg.errors import UserError

register_schemas()
VALUES = {
    "text": "abc", "negative": -1, "zero": 0, "nan": float("nan"), "inf": float("inf"), "1e30": 1e30, "huge": 10**30,
    "empty": "", "null": None, "list": [1, "a"], "options": {"a": 1}, "fraction": 0.37, "true": True,
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


def option_files():
    """``(group, option)`` of every option file, and of the options outside the groups."""
    found = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
    return [(group, name) for group, name in found if name not in ("stored", "csv", "none", "wandb")] + [("", "")]


def composed(group, name):
    words = [*NEEDS.get(group, ()), *ASKED.get(name, [])]
    if group.startswith("loss/"):
        words.append("loss=gm")
    if group == "callbacks":
        choice = [f"callbacks=[default,{name}]" if name != "default" else "callbacks=default"]
    elif group == "unknown":
        choice = [
            f"unknown={name}",
            "detector=energy",
            "data=birds",
            "data.source.train=64",
            "data.source.test=32",
            "data.image_size=24",
        ]
    else:
        choice = [f"{group}={name}"] if group else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*TINY, *words, *choice])


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


def options_of(group, name):
    config = composed(group, name)
    top = group.partition("/")[0]
    if not group:
        names = ["seed", "output", "epsilon", "monitor", "init_from", "test"]
    else:
        names = list(leaves(config[top], top))
    return config, names


class Cache:
    """What does not depend on the option that is tried."""

    def __init__(self, folder):
        config = config_of("train", *TINY)
        self.folder = folder
        self.data = assemble.data_of(config)
        self.classifier = assemble.classifier_of(config, self.data.classes)


def build(config, group, cache):
    """Builds what ``train`` builds, of the parts that a group of options changes, up to the point of training."""
    top = group.partition("/")[0]
    everything = top in ("", "data", "unknown")
    data = assemble.data_of(config) if everything else cache.data
    again = everything or top in ("model", "loss", "training", "optimizer", "scheduler")
    classifier = assemble.classifier_of(config, data.classes) if again else cache.classifier
    evaluation = assemble.evaluation_of(config, cache.folder, data)
    callbacks = [evaluation, *assemble.validation_of(config, data), *assemble.callbacks_of(config)]
    trainer = assemble.trainer_of(config, cache.folder, callbacks, [])
    rehearsal.rehearse_training(trainer, classifier, data, evaluation, config["monitor"])
    if again:
        step(classifier, data, trainer)
    return True


def step(classifier, data, trainer):
    """One step of training by hand, at the beginning, with a batch of two."""
    batch = [torch.stack([torch.as_tensor(data.samples("train")[i][part]) for i in (0, 1)]) for part in range(3)]
    from robustfg.types import Batch

    classifier.loss.epoch = 0.5
    terms = classifier.regime(classifier, classifier.loss, Batch(*batch), 0, 0)
    classifier.schedule(0.5, trainer.max_epochs)
    classifier._optimizer_of(classifier.parameters())
    assert "loss" in terms


def fault(config, option, value, group, cache):
    """What is wrong with how the commands take a value: None where they run, or end with one line that names it."""
    changed = config.copy()
    try:
        OmegaConf.set_struct(changed, False)
        with open_dict(changed):
            OmegaConf.update(changed, option, value, merge=False, force_add=True)
        node = plain(changed) | {"names": {"data": "digits", "loss": "softmax", "model": "tiny", "attack": "x"}}
    except UserError as error:
        return judged(str(error), option)
    except Exception as error:
        from omegaconf.errors import OmegaConfBaseException

        return None if isinstance(error, OmegaConfBaseException) else f"compose {type(error).__name__}: {error}"
    try:
        build(node, group, cache)
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
    return None


def judged(message, option):
    if "\n" in message:
        return f"several lines: {message!r}"
    parts = option.split(".")
    named = any(
        re.search(rf"\b{re.escape(part)}\b", message) for part in (option, parts[-1], ".".join(parts[:2]), parts[0])
    )
    return None if named else f"names no option: {message!r}"


def small(group, name):
    """Whether an option can be built here at once, without files or a large network."""
    return not (name in NO_DATA_HERE and group in ("data", "unknown")) and not (group == "model" and name in LARGE)


def sweep(pick, files=None, accepted=None):
    """``(option file, option, kind of value, fault)`` of the combinations that ``pick(number)`` chooses."""
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        for group, name in files or option_files():
            if not small(group, name):
                continue
            config, names = options_of(group, name)
            for option in names:
                for kind, value in VALUES.items():
                    number += 1
                    if not pick(number):
                        continue
                    found = fault(config, option, value, group, cache)
                    if found:
                        yield f"{group}={name}", option, kind, found
                    elif accepted is not None:
                        accepted.append((f"{group}={name}", option, kind))


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    files = [tuple(word.split("=")) for word in sys.argv[1:]] or None
    accepted = []
    faults = 0
    for line in sweep(lambda number: True, files, accepted):
        faults += 1
        print(" ".join(line), flush=True)
    print(f"{faults} faults, {len(accepted)} accepted")
