"""From a plain config to the objects that both commands use."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from robustfg.attacks import Attack
from robustfg.checkpoint import Checkpoint
from robustfg.classifier import Classifier
from robustfg.cli.arguments import shown
from robustfg.cli.config import build
from robustfg.cli.processes import refuse_impossible_devices, refuse_other_ranks
from robustfg.cli.rehearsal import refuse_unkept, refuse_unknown_account
from robustfg.cli.suggestions import NoOptionError
from robustfg.cli.trust import offline, refuse_untrusted_config
from robustfg.core.errors import UserError
from robustfg.data.annotations import privileged_of
from robustfg.data.datamodule import DataModule
from robustfg.data.listing import KEPT_IN
from robustfg.data.samples import FitSquare
from robustfg.data.source import Source
from robustfg.data.unknown import Unknown
from robustfg.detectors import Detector
from robustfg.evaluation import RobustnessEvaluation
from robustfg.evaluation.detection import Detection
from robustfg.evaluation.fingerprint import weights_sha256
from robustfg.losses import Softmax
from robustfg.models import PublishedBackbone
from robustfg.reporting.csv_logger import MetricsCsv
from robustfg.training import Phases
from robustfg.training.callbacks import TrainingBar, TrainingLines

Config = Mapping[str, Any]


OF_THE_SOURCE = ("root", "download", "crop", "expect_official")
"""Keys of the data node that only its source reads, through interpolation."""


PARTS = ("validation", "detection", "engine")
"""Keys of the evaluation's node that are no arguments of the evaluation."""


def data_of(config: Config) -> DataModule:
    """The data module; keys of the node that only its source reads are left out."""
    node = {key: value for key, value in node_of(config, "data").items() if key not in OF_THE_SOURCE}
    if "_target_" not in node:
        raise UserError("data is not chosen; without a checkpoint choose it, such as data=folder data.root=…")
    kept = KEPT_IN.set(Path(config["output"]).expanduser() / ".listings" if config.get("output") else None)
    try:
        data = build(node, "data")
    finally:
        KEPT_IN.reset(kept)
    assert isinstance(data, DataModule)
    return data


def classifier_of(config: Config, classes: tuple[str, ...]) -> Classifier:
    """The classifier with fresh weights, as ``train`` and a rebuilt checkpoint have it."""
    if config.get("init_from") and (node_of(config, "model").get("pretrained") or config["model"].get("weights")):
        raise UserError("init_from brings all weights; leave out model.pretrained and model.weights")
    backbone = build(config["model"], "model")
    node = {key: value for key, value in node_of(config, "loss").items() if key != "phases"}
    loss = build(node, "loss", channels=backbone.channels, num_classes=len(classes))
    return Classifier(
        backbone=backbone,
        loss=loss,
        num_classes=len(classes),
        regime=build(_regime(node_of(config, "training"), "training"), "training"),
        optimizer=build(config["optimizer"], "optimizer"),
        schedule=build(config["scheduler"], "scheduler"),
        phases=phases_of(config["loss"]),
        seed=config["seed"],
        stored={"config": dict(config), "classes": list(classes)},
    )


def phases_of(loss: Mapping[str, Any]) -> Phases | None:
    """The phases that a loss declares by name, in order; None where it declares none."""
    if not loss.get("phases"):
        return None
    nodes = {name: node for name, node in node_of({"loss": loss}, "loss.phases").items() if node is not None}
    phases = [build(node, f"loss.phases.{name}") for name, node in _named(nodes, "loss.phases").items()]
    return Phases(tuple(phases)) if phases else None


def published_classifier_of(config: Config, classes: tuple[str, ...]) -> Classifier:
    """A timm classifier as published, its own linear head included."""
    if config["model"].get("name") is None:
        raise UserError("set checkpoint=…, or model.name=… (with model.pretrained=true or model.weights=…)")
    if "_target_" in (config["loss"] or {}):
        raise UserError("loss needs a trained checkpoint; leave it out to evaluate the network's own head")
    model = config["model"]
    if not (model.get("pretrained") or model.get("weights")):
        raise UserError(
            f"model.name={model['name']} without weights is random; set model.pretrained=true or model.weights"
        )
    backbone = PublishedBackbone(
        name=model["name"],
        image_size=config["data"]["image_size"],
        num_classes=len(classes),
        pretrained=bool(model.get("pretrained")),
        weights=model.get("weights"),
    )
    return Classifier(backbone=backbone, loss=Softmax.around(backbone.head), num_classes=len(classes))


def attacks_of(config: Config, classes: tuple[str, ...], genera: tuple[str, ...] | None = None) -> dict[str, Attack]:
    """The suite by name. A surrogate given by its run's folder is loaded; the data's genera are the classes' groups."""
    if taken := {"clean", "robust"} & node_of(config, "attack").keys():
        raise UserError(f"attack.{min(taken)}: choose another name, this one stands for something else in the results")
    engine = build(node_of(config, "evaluation.engine"), "evaluation.engine")
    suite = {}
    for name, node in _named(config["attack"], "attack").items():
        option = f"attack.{name}"
        surrogate: dict[str, Any] = {}
        if "surrogate" in node:
            surrogate = surrogate_of(node["surrogate"], f"{option}.surrogate", classes, tuple(config.get("trust", ())))
        rest = {key: value for key, value in node.items() if key != "surrogate"}
        attack = build(_grouped(rest, genera), option, **surrogate)
        try:
            suite[name] = attack.run_by(engine)
        except UserError as error:
            raise UserError(f"{option}: evaluation.{error}") from error
    return suite


def _grouped(node: Any, genera: tuple[str, ...] | None) -> Any:
    """The node with the data's genera wherever ``groups`` are asked for and left open."""
    if isinstance(node, dict):
        open_ = "groups" in node and node["groups"] is None and genera is not None
        filled = {key: _grouped(value, genera) for key, value in node.items()}
        return filled | {"groups": list(genera or ())} if open_ else filled
    return node


def surrogate_of(path: Any, option: str, classes: tuple[str, ...], trust: tuple[str, ...]) -> dict[str, Any]:
    """The classifier of another run, given by its folder or checkpoint, and a name that tells it from others."""
    if not isinstance(path, str):
        raise UserError(f"{option} must be the folder or a checkpoint of another run, got {shown(path)}")
    place = Path(path).expanduser()
    checkpoint = Checkpoint.read(place / "checkpoints" / "best.ckpt" if place.is_dir() else place, option)
    checkpoint.expect_classes(classes)
    classifier = restored_of(checkpoint, trust)
    return {"surrogate": classifier, "surrogate_name": f"{path}, weights {weights_sha256(classifier)[:12]}"}


def restored_of(checkpoint: Checkpoint, trust: tuple[str, ...]) -> Classifier:
    """A checkpoint's classifier with its weights, in eval mode; only what is ours or trusted is instantiated."""
    refuse_untrusted_config(checkpoint.config, trust)
    stored = offline(checkpoint.config)
    model = stored["model"] | {"pretrained": False, "weights": None}  # the file's own weights follow
    classifier = classifier_of(stored | {"model": model}, checkpoint.classes)
    checkpoint.load_into(classifier)
    return classifier.eval()


def fit_square_of(data: Mapping[str, Any]) -> FitSquare:
    """How a data module of this node brings an image to the size of the network."""
    given = {key: data[key] for key in ("crop_ratio", "keep_aspect") if key in data}
    return FitSquare(size=data["image_size"], **given)


def evaluation_of(config: Config, folder: Path, data: DataModule) -> RobustnessEvaluation:
    """The robustness evaluation of ``trainer.test``."""
    node = {key: value for key, value in node_of(config, "evaluation").items() if key not in PARTS}
    make = build(node, "evaluation", _partial_=True)
    names = {"model": config["model"].get("name"), "loss": "own head", **config["names"]}
    about = {
        "run": config["run_name"],
        **{key: names[key] for key in ("data", "model", "loss")},
        "seed": config["seed"],
        "privileged": privileged_of(data.source),
        "suite": names.get("attack"),
        "checkpoint": config.get("checkpoint"),
    }
    loading = ("batch_size", "eval_batch_size", "num_workers", "cache", "root", "download")
    head = (config["loss"] or {}).get("head")
    about |= {} if head is None else {"head": head}
    data_node = {k: v for k, v in config["data"].items() if k not in loading}
    context = {"data": data_node, "model": config["model"], "head": head}
    evaluation = make(
        attacks=attacks_of(config, data.classes, data.source.genera), folder=folder, about=about, context=context,
        detection=detection_of(config, data),
    )  # fmt: skip
    assert isinstance(evaluation, RobustnessEvaluation)
    return evaluation


def detectors_of(config: Config) -> dict[str, Detector]:
    """The chosen detectors by name, not yet fitted."""
    nodes = config.get("detector") or {}
    return {name: build(node, f"detector.{name}") for name, node in nodes.items()}


def unknown_of(config: Config, known: Source) -> dict[str, Unknown]:
    """The chosen sets of unknown images by name."""
    nodes = config.get("unknown") or {}
    return {name: build(node, f"unknown.{name}", known=known) for name, node in nodes.items()}


def detection_of(config: Config, data: DataModule) -> Detection | None:
    """What is asked about the chosen detectors; None where none is chosen."""
    detectors, unknown = detectors_of(config), unknown_of(config, data.source)
    if not detectors:
        if unknown:
            raise UserError(
                "unknown: images are told from known ones by a detector; choose one such as detector=energy, or leave "
                "unknown out"
            )
        return None
    option = "evaluation.detection"
    node = node_of(config, option)
    surrogate: dict[str, Any] = {}
    if node.get("surrogate") is not None:
        trusted = tuple(config.get("trust", ()))
        surrogate = surrogate_of(node["surrogate"], f"{option}.surrogate", data.classes, trusted)
    rest = {key: value for key, value in node.items() if key != "surrogate"}
    make = build(rest, option, _partial_=True)  # the nodes are to be kept as they are
    detection = make(detectors=detectors, nodes=config["detector"], unknown=unknown, **surrogate)
    assert isinstance(detection, Detection)
    return detection


def validation_of(config: Config, data: DataModule) -> list[pl.Callback]:
    """The look at robustness during training, where it chooses the checkpoint."""
    make = build(node_of(config, "evaluation.validation"), "evaluation.validation", _partial_=True)
    if config["monitor"] != "val/robust_accuracy":
        return []
    return [make(attacks=attacks_of(config, data.classes, data.source.genera))]


def callbacks_of(config: Config) -> list[pl.Callback]:
    """The named callbacks of the config."""
    return [build(node, f"callbacks.{name}") for name, node in (config["callbacks"] or {}).items()]


def loggers_of(config: Config, folder: Path) -> list[Logger]:
    """metrics.csv, and the chosen dashboards."""
    if "wandb" in (config["logger"] or {}):
        refuse_unknown_account(config["logger"]["wandb"])
    return [
        MetricsCsv(folder / "metrics.csv"),
        *(build(node, f"logger.{name}", save_dir=str(folder)) for name, node in (config["logger"] or {}).items()),
    ]


def trainer_of(config: Config, folder: Path, callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """The Lightning trainer. Settings that it refuses, or that the commands cannot keep, are the user's to mend."""
    refuse_unkept(node_of(config, "trainer"))
    refuse_impossible_devices(config["trainer"])
    make: functools.partial[pl.Trainer] = build(config["trainer"], "trainer")
    if make.keywords.get("enable_progress_bar"):
        callbacks = [*callbacks, TrainingBar() if sys.stdout.isatty() else TrainingLines()]
    try:
        trainer = make(default_root_dir=folder, callbacks=callbacks, logger=loggers)
    except Exception as error:  # whatever it is, it is about these settings
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    refuse_other_ranks(trainer)
    return trainer


def node_of(config: Config, option: str) -> Mapping[str, Any]:
    """A part of the config that holds options. Raises ``UserError`` where it is missing or something else."""
    node: Mapping[str, Any] = config
    for key in option.split("."):
        if key not in node:
            raise UserError(f"{option} is missing")
        value = node[key]
        if not isinstance(value, Mapping):
            raise UserError(f"{option} must hold options, got {shown(value)}")
        node = value
    return node


def _regime(node: Mapping[str, Any], option: str) -> dict[str, Any]:
    """A regime's node, and that of the regime below it, without what the trainer reads; attacks get their names."""
    regime = {key: value for key, value in node.items() if key not in ("epochs", "monitor")}
    if isinstance(regime.get("attack"), Mapping):
        regime["attack"] = _named(regime["attack"], f"{option}.attack")
    if isinstance(regime.get("regime"), Mapping):
        regime["regime"] = _regime(regime["regime"], f"{option}.regime")
    return regime


def _named(suite: Mapping[str, Any], option: str) -> dict[str, Any]:
    """Every node with its name, which separates an attack's random numbers from those of others."""
    for name, node in suite.items():
        if node is None:
            raise UserError(f"{option}.{name} cannot be null; leave it out with ~{option}.{name}")
        if not isinstance(node, Mapping):
            raise NoOptionError(f"{option}.{name}")
    return {name: {"name": name, **node} for name, node in suite.items()}
