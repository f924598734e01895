"""robustfg.train: train a classifier, then evaluate its best checkpoint on the test split."""

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from robustfg.config import CONF, chosen, plain, register_schemas, told_plainly
from robustfg.errors import UserError

register_schemas()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(composed: DictConfig) -> float | None:
    """Checks the composed config and trains."""
    with told_plainly():
        config = plain(composed) | {"names": chosen("data", "loss", "model", "training")}
        refuse_sweep_with_ddp(config)
        return train(config, Path(HydraConfig.get().runtime.output_dir), command=sys.argv)


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
    from robustfg import assemble, run
    from robustfg.training.callbacks import SaveOnInterrupt

    run.begin(config["seed"])
    run.refuse_another_runs_folder(config, folder)
    data = assemble.data_of(config)
    classifier = assemble.classifier_of(config, data.classes)
    evaluation = assemble.evaluation_of(config, folder)
    last = folder / "checkpoints" / "last.ckpt"
    callbacks = [evaluation, *assemble.validation_of(config), *assemble.callbacks_of(config), SaveOnInterrupt(last)]
    with run.dashboards_closed(config):
        trainer = assemble.trainer_of(config, folder, callbacks, assemble.loggers_of(config, folder))
        run.write_origin(config, folder, data, command)
        run.fit(trainer, classifier, data, last)
        if config["test"]:
            run.load_best(trainer, classifier)
            run.test(trainer, classifier, data, evaluation, folder)
    return run.best_score(trainer)


def refuse_sweep_with_ddp(config: dict[str, Any]) -> None:
    """In a multirun every rank that Lightning starts would begin a sweep of its own."""
    strategy = str(config["trainer"]["strategy"])
    several = config["trainer"]["devices"] not in (1, "1") or config["trainer"]["num_nodes"] > 1
    if HydraConfig.get().mode == RunMode.MULTIRUN and several and not strategy.endswith(("spawn", "fork")):
        raise UserError(
            f"trainer.strategy={strategy} on several devices cannot run in a multirun: use trainer=ddp_spawn, or one "
            "job per GPU through a launcher (hydra/launcher=submitit_slurm trainer.devices=1)"
        )


if __name__ == "__main__":
    main()
