"""robustfg.train: train a classifier, then evaluate its best checkpoint on the test split."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from robustfg.cli.config import CONF, chosen, plain, refuse_sweep_with_ddp, register_schemas
from robustfg.cli.errors import run_plainly, told_plainly
from robustfg.cli.folder import claimed, folder_of, refuse_another_request, refuse_held
from robustfg.cli.processes import is_first
from robustfg.core.errors import UserError

register_schemas()

MONITORS = ("val/accuracy", "val/robust_accuracy")
"""What may choose best.ckpt; the larger the better."""


def main() -> None:
    """Composes the config and trains."""
    run_plainly("train", train_composed)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train_composed(composed: DictConfig) -> float | None:
    """Checks the composed config and trains."""
    with told_plainly(composed):
        config = plain(composed) | {"names": chosen("data", "loss", "model", "training", "attack")}
        refuse_sweep_with_ddp(config["trainer"])
        job = "{data}-{loss}".format(**config["names"])
        where = f"{config['output']}/{job}/{config['run_name']}"
        folder = folder_of(where, f"-{job}-s{config['seed']}")
        return train(config, folder, command=sys.argv)


def train(config: dict[str, Any], folder: Path, command: list[str]) -> float | None:
    """Trains, or continues where ``folder`` stopped, then evaluates best.ckpt.

    Args:
        config: the resolved config as plain containers.
        folder: the run's folder.
        command: what was typed, for the record.

    Returns:
        The best value of ``monitor``, for sweeps that optimise it.
    """
    # Only now, so that --help and --cfg need none of it.
    from robustfg.cli import assemble, rehearsal, session, splits
    from robustfg.cli.lifeline import Lifeline
    from robustfg.training.continuing import LastCheckpoint

    if config["monitor"] not in MONITORS:
        raise UserError(f"monitor must be {' or '.join(MONITORS)}, got {config['monitor']}")
    session.begin(config["seed"])
    refuse_held(folder)
    refuse_another_request(config, folder, training=True)
    data = assemble.data_of(config)
    last = folder / "checkpoints" / "last.ckpt"
    splits.follow_run(data, last, f"run_name={config['run_name']}: the checkpoint to continue from")
    classifier = assemble.classifier_of(config, data.classes)
    init_from = session.start_from(config, classifier, data, folder)
    if is_first():  # which writes the checkpoints
        classifier.stored["splits"] = data.splits().packed()
    session.say(*data.found())
    evaluation = assemble.evaluation_of(config, folder, data)
    validation = assemble.validation_of(config, data)
    advice = session.how_to_continue(config, folder)
    callbacks = [LastCheckpoint(last), Lifeline(advice), evaluation, *validation, *assemble.callbacks_of(config)]
    with claimed(folder, command), session.dashboards_closed(config):
        refuse_another_request(config, folder, training=True)  # another one may have come meanwhile
        trainer = assemble.trainer_of(config, folder, callbacks, assemble.loggers_of(config, folder))
        session.look_back(config, trainer, last)
        tested = evaluation if config["test"] else None
        rehearsal.rehearse_training(trainer, classifier, data, tested, config["monitor"])
        session.write_origin(config, folder, data, command, trainer.loggers, init_from=init_from)
        with session.stopped_plainly(config, trainer, advice):
            session.fit(trainer, classifier, data, last)
            if config["test"]:
                session.load_best(classifier, last.with_name("best.ckpt"))
                session.test(trainer, classifier, data, evaluation, folder)
    return session.best_score(trainer)


if __name__ == "__main__":
    main()
