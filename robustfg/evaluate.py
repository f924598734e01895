"""robustfg.evaluate: attack a checkpoint, or any pretrained timm classifier, without training."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from robustfg.cli.config import (
    CONF,
    chosen,
    plain,
    refuse_sweep_with_ddp,
    register_schemas,
)
from robustfg.cli.errors import run_plainly, told_plainly
from robustfg.cli.folder import claimed, folder_of, refuse_another_request, refuse_held
from robustfg.cli.trust import offline, refuse_untrusted_config
from robustfg.core.errors import UserError

register_schemas()


def main() -> None:
    """Composes the config and evaluates."""
    run_plainly("evaluate", evaluate_composed)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def evaluate_composed(composed: DictConfig) -> float:
    """Checks the composed config and evaluates."""
    with told_plainly(composed):
        config = plain(composed) | {"names": chosen("data", "attack")}
        refuse_sweep_with_ddp(config["trainer"])
        folder = folder_of(f"{config['output']}/evaluations/{config['run_name']}")
        return evaluate(config, folder, command=sys.argv)


def evaluate(config: dict[str, Any], folder: Path, command: list[str]) -> float:
    """Evaluates on the test split; a second call with the same ``run_name`` continues an interrupted evaluation.

    Args:
        config: the resolved config as plain containers.
        folder: where the evaluation's files go.
        command: what was typed, for the record.

    Returns:
        The worst-case accuracy.
    """
    # Only now, so that --help and --cfg need none of it.
    from robustfg.checkpoint import Checkpoint
    from robustfg.cli import assemble, rehearsal, session, splits
    from robustfg.cli.lifeline import Lifeline

    session.begin(config["seed"])
    refuse_held(folder)
    if config["checkpoint"] is None:
        data = assemble.data_of(config)
        data.trained = None  # by its publisher, on what nobody here knows
        data.remarks.append("Which images the model was trained on is not known: the verdict is about the attacks.")
        classifier = assemble.published_classifier_of(config, data.classes)
    else:
        checkpoint = Checkpoint.read(config["checkpoint"])
        chosen_data = "_target_" in config["data"]
        config = with_stored(config, checkpoint.config)
        data = assemble.data_of(config)
        checkpoint.expect_classes(data.classes)
        splits.follow_checkpoint(data, checkpoint, config["data"], chosen=chosen_data)
        classifier = assemble.classifier_of(config, checkpoint.classes)
        checkpoint.load_into(classifier)
    refuse_another_request(config, folder, training=False)
    session.say(*data.found())
    evaluation = assemble.evaluation_of(config, folder, data)
    advice = session.how_to_continue(config, folder)
    callbacks = [Lifeline(advice), evaluation]
    with claimed(folder, command), session.dashboards_closed(config):
        refuse_another_request(config, folder, training=False)  # another one may have come meanwhile
        trainer = assemble.trainer_of(config, folder, callbacks, assemble.loggers_of(config, folder))
        rehearsal.rehearse_evaluation(trainer, classifier, data, evaluation)
        session.write_origin(config, folder, data, command, trainer.loggers)
        with session.stopped_plainly(config, trainer, advice):
            return session.test(trainer, classifier, data, evaluation, folder)


def with_stored(config: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config with what the user set for this evaluation.

    ``data`` replaces the stored node where it was chosen, and single keys of it otherwise; ``model`` and ``loss`` must
    be the checkpoint's, but for ``loss.head``.
    """
    refuse_untrusted_config(stored, tuple(config["trust"]))
    stored = offline(stored)
    name, stored_name = config["model"].get("name"), stored["model"]["name"]
    if name not in (None, stored_name):
        raise UserError(f"model.name={name}, but checkpoint={config['checkpoint']} holds {stored_name}")
    if config["model"].get("weights") or config["model"].get("pretrained"):
        raise UserError("model.weights and model.pretrained cannot be set for a checkpoint, which has its own weights")
    if "_target_" in (config["loss"] or {}):
        raise UserError("loss cannot be chosen for a checkpoint, which has its own; leave it out")
    data = config["data"]
    if "_target_" not in data:
        data = merged(stored["data"], data)
    if data["image_size"] != stored["model"]["image_size"]:
        raise UserError(
            f"data.image_size={data['image_size']}, but the checkpoint was trained on "
            f"{stored['model']['image_size']}; add data.image_size={stored['model']['image_size']}"
        )
    # The file's own weights follow; none are fetched first.
    model = stored["model"] | {"pretrained": False, "weights": None}
    suite = {"attack": config["names"].get("attack")}
    names = stored["names"] | suite | ({} if data is not config["data"] else config["names"])
    return (
        stored | config | {"data": data, "model": model, "loss": headed(stored["loss"], config["loss"]), "names": names}
    )


def headed(stored: dict[str, Any], chosen: dict[str, Any] | None) -> dict[str, Any]:
    """The stored loss with the head that was chosen to decide, where one was."""
    unknown = sorted((chosen or {}).keys() - {"head"})
    if unknown:
        raise UserError(f"loss.{unknown[0]} cannot be set for a checkpoint; only loss.head can")
    head = (chosen or {}).get("head")
    if head is None:
        return stored
    if "head" not in stored:
        raise UserError(f"loss.head={head}, but the checkpoint's loss {stored['_target_']} has one head only")
    return stored | {"head": head}


def merged(stored: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """A stored data node with the chosen values that are not None; a new root reaches the source too."""
    changes = {key: value for key, value in chosen.items() if value is not None}
    if "source" in changes:
        raise UserError("data.source cannot be set for the data of a checkpoint; choose data=… too")
    unknown = sorted(changes.keys() - stored.keys() - {"eval_batch_size", "cache", "num_workers", "max_test_samples"})
    if unknown:
        raise UserError(f"data.{unknown[0]} is no option of the data this checkpoint was trained on")
    source = {key: value for key, value in changes.items() if key in stored["source"]}
    return stored | changes | {"source": stored["source"] | source}


if __name__ == "__main__":
    main()
