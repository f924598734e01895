"""The robustness evaluation as a Lightning callback, exact on any number of processes."""

import contextlib
import functools
import json
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from robustfg.attacks import Attack
from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.files import write_text
from robustfg.core.precision import exact_arithmetic
from robustfg.core.types import Batch
from robustfg.data.datamodule import DataModule
from robustfg.data.splits import balanced_subset
from robustfg.evaluation.aggregation import require_complete
from robustfg.evaluation.checks import Facts, Probe
from robustfg.evaluation.checks.hygiene import split_hygiene
from robustfg.evaluation.confusion import confusion_of
from robustfg.evaluation.detection.options import Detection
from robustfg.evaluation.detection.watch import refuse_unwatchable, watch_over
from robustfg.evaluation.embedding import embedding_of
from robustfg.evaluation.fingerprint import fingerprints, weights_sha256
from robustfg.evaluation.gallery import shown_in_gallery, write_gallery
from robustfg.evaluation.gather import claimed, gathered, total
from robustfg.evaluation.measure import Classify, measure_clean
from robustfg.evaluation.pace import Pace
from robustfg.evaluation.progress import AttackProgress
from robustfg.evaluation.records import CLEAN, RecordStore, table_of, write_table
from robustfg.evaluation.regions import Annotations, Regions
from robustfg.evaluation.remarks import finite
from robustfg.evaluation.rounds import measure_attack
from robustfg.evaluation.separation import Embeddings
from robustfg.evaluation.summary import numbers_of


class Evaluated(Classify, Protocol):
    """What the callback needs of the LightningModule: its outputs and the test loop's own count."""

    test_accuracy: Metric


class RobustnessEvaluation(pl.Callback):
    """Attacks every test sample and writes ``robustness/`` into the run's folder.

    Args:
        attacks: the suite, by name.
        folder: the run's folder.
        about: what else ``summary.json`` says at its top, such as the run's and the data's name.
        context: settings of data and model that ids and weights do not tell; rows of an interrupted evaluation are
            continued only under the same.
        split: the split evaluated by ``trainer.test``.
        perturbations: keep the worst perturbation of every broken sample.
        gallery: number of broken samples whose images are kept for the page.
        checks: number of samples on which the evaluation itself is checked; 0 for none.
        detection: detectors to evaluate as well, and how; None for none.

    Attributes:
        summary: content of ``summary.json`` on rank 0 after the test; None before and elsewhere.
    """

    def __init__(
        self,
        *,
        attacks: Mapping[str, Attack],
        folder: str | Path,
        about: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        split: str = "test",
        perturbations: bool = True,
        gallery: int = 8,
        checks: int = 128,
        detection: Detection | None = None,
    ) -> None:
        if not attacks:
            raise UserError("attack is empty; choose a suite such as attack=quick")
        self.folder, self.about = Path(folder) / "robustness", dict(about or {})
        self.given = self.attacks = dict(attacks)
        self.context = dict(context or {})
        if split not in ("test", "val"):
            raise UserError(f"evaluation.split must be test or val, got {split}")
        for option, value in {"gallery": gallery, "checks": checks}.items():
            refuse_outside(f"evaluation.{option}", value, least=0)
        self.split, self.perturbations, self.gallery, self.checks = split, perturbations, gallery, checks
        self.detection = detection
        self.summary: dict[str, Any] | None = None
        self.handler: Any = None

    def refuse_unfit(self, data: DataModule) -> None:
        """Raises ``UserError`` for what the data at hand cannot serve, before any model is evaluated."""
        if self.detection is not None:
            refuse_unwatchable(self.detection, self.given, data, self.split)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        _data(trainer).evaluated = self.split

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = _data(trainer)
        self.refuse_unfit(data)
        half = [name for name, parameter in pl_module.named_parameters() if parameter.dtype != torch.float32]
        if half:
            raise UserError("trainer.precision: evaluation needs float32 weights; train with 16-mixed or bf16-mixed")
        positions = data.positions[self.split]
        labels = np.asarray(data.samples(self.split).labels)
        probed = positions[balanced_subset(labels, self.checks)]
        self.probe = Probe.on(probed.tolist(), self.attacks.values() if self.checks else ())
        self.ids = data.described(self.split)["ids_sha256"]
        weights = weights_sha256(pl_module)
        known = self.about | {"weights_sha256": weights}
        self.watch = watch_over(self.detection, trainer, pl_module, self.given, known)
        self.references = self.watch.references if self.checks else {}
        everything = self.given | dict(self.probe.attacks) | self.watch.attacks | self.references
        self.identity = [weights, self.ids, self.context, *self.watch.identity]
        prints = fingerprints(self.identity, everything, [CLEAN, *self.watch.probes])
        confusion = functools.cache(lambda: confusion_of(cast(Evaluated, pl_module), data, pl_module.device))
        self.attacks = {name: attack.told(confusion) for name, attack in self.given.items()}
        if threading.current_thread() is threading.main_thread():  # rows are safe: leave at once, without collectives
            self.handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self.store = RecordStore(self.folder, trainer.global_rank, prints)
        self.train_mode = sum(module.training for module in pl_module.modules())
        self.probabilities, self.unfit, self.weights = 0, 0, weights
        self.annotations = Annotations(data.source, data.samples(self.split).split, data.fit_square)
        self.embeddings = Embeddings()
        self.pace: Pace | None = None
        batches = trainer.num_test_batches[0]
        shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        self.progress = AttackProgress(list(everything.values()), int(batches), enabled=shown)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        with exact_arithmetic():
            batch = Batch(*(tensor.clone() for tensor in batch))  # the loop's tensors come from inference mode
            self.watch.see(batch)
            model = cast(Evaluated, pl_module)
            regions = self.annotations.of(batch)
            clean, found = measure_clean(self.watch.judged, batch, regions)
            self._add(clean)
            self.embeddings.add(found["embedding"].nan_to_num(0.0, 0.0, 0.0), batch.label, batch.index)
            self.unfit += int((~found["embedding"].isfinite().all(1)).sum())
            logits = found["logits"]
            self.probabilities += int(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-4)).sum())
            self.pace = self.pace or Pace.of(self.watch.judged, batch.image)
            for attack in self.attacks.values():
                with self.progress.attacking(attack, pl_module, batch_idx):
                    self._attack(model, attack, batch, logits, regions, keep=self.perturbations)
            for attack in self.watch.attacks.values():
                with self.progress.attacking(attack, pl_module, batch_idx):
                    self._attack(self.watch.judged, attack, batch, logits, None, keep=False)
            probed = torch.tensor([i in self.probe.samples for i in batch.index.tolist()], device=logits.device)
            part = Batch(batch.image[probed], batch.label[probed], batch.index[probed])
            if any((name, i) not in self.store.done for name in self.watch.probes for i in part.index.tolist()):
                self._add(self.watch.probe(part))
            for attack in self.probe.attacks.values():
                with self.progress.attacking(attack, pl_module, batch_idx):
                    self._attack(model, attack, part, logits[probed], None, keep=False)
            for attack in self.references.values():
                with self.progress.attacking(attack, pl_module, batch_idx):
                    self._attack(self.watch.judged, attack, part, logits[probed], None, keep=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.stop()
        data, world = _data(trainer), trainer.world_size
        self.watch.measure(self.folder, self.identity)
        rows = [row for part in gathered(self.store.own_rows(world)) for row in part]
        table = table_of(rows)
        rounds = {name: attack.rounds for name, attack in (self.attacks | self.watch.attacks).items()}
        require_complete(table, data.positions[self.split], rounds)
        facts = self._facts(trainer, cast(Evaluated, pl_module))
        embedding = embedding_of(
            self.embeddings, data.classes, loss=getattr(pl_module, "loss", None), device=pl_module.device,
            picture=self.folder / "embedding.npz" if trainer.is_global_zero else None,
        )  # fmt: skip
        summary = self._summary(table, facts, trainer, embedding)
        if trainer.is_global_zero:  # what an earlier evaluation left here
            shutil.rmtree(self.folder / "perturbations", ignore_errors=True)
            with contextlib.suppress(OSError):
                (self.folder / "gallery.npz").unlink(missing_ok=True)
        trainer.strategy.barrier("earlier files removed")
        worst = claimed(gathered(self.store.worst_margins(world)), trainer.global_rank)
        if self.perturbations:
            self.store.write_perturbations(self.folder / "perturbations", world, worst)
        self._write_gallery(trainer, pl_module, table, worst)
        if trainer.is_global_zero:
            self.watch.write(self.folder)
            write_table(table, self.folder / "records.parquet")
            write_text(self.folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
            self.summary = summary
        trainer.strategy.barrier("evaluation written")
        self.store.discard(world)
        numbers = {"clean": summary["clean"], "robust": summary["worst_case"]} | summary["attacks"]
        pl_module.log_dict({f"test/{name}_accuracy": float(part["accuracy"]) for name, part in numbers.items()})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()
        self._give_back()

    def _give_back(self) -> None:
        """The process's own answer to SIGTERM."""
        if self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)
            self.handler = None

    def _attack(
        self, model: Classify, attack: Attack, batch: Batch, logits: Tensor, regions: Regions | None, *, keep: bool
    ) -> None:
        """Attacks ``model`` with the samples of a batch, but for what an interrupted evaluation has done."""
        if not self.store.lacks(attack.name, batch.index.tolist(), attack.rounds):
            return
        units = measure_attack(
            self.watch.judged, attack, batch, logits, keep=keep, regions=regions, attacked=model,
            detector=self.watch.detector(attack.name), pace=self.pace,
            known=self.store.known(attack.name, batch.index.tolist()),
        )  # fmt: skip
        for unit in units:
            self.store.add(*unit)

    def _add(self, rows: list[dict[str, Any]]) -> None:
        if new := [row for row in rows if (row["attack"], row["index"]) not in self.store.done]:
            self.store.add(new, [])

    def _facts(self, trainer: pl.Trainer, model: Evaluated) -> Facts:
        counted = round(float(model.test_accuracy.compute()) * len(_data(trainer).positions[self.split]))
        train_mode, probabilities, unfit = total([self.train_mode, self.probabilities, self.unfit])
        same_precision = str(trainer.precision) == "32-true"
        hygiene = split_hygiene(_data(trainer), self.split) if self.checks and trainer.is_global_zero else None
        return Facts(
            int(train_mode), int(probabilities), counted if same_precision else None, int(unfit), gathered(hygiene)[0]
        )

    def _summary(
        self, table: Any, facts: Facts, trainer: pl.Trainer, embedding: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        data = _data(trainer)
        head = {
            "schema": 1,
            **self.about,
            "classes": list(data.classes),
            "genera": list(data.source.genera) if data.source.genera else None,
            "split": self.split,
            "ids_sha256": self.ids,
            "weights_sha256": self.weights,
            "precision": "fp32",
            "world_size": trainer.world_size,
        }
        distances = self.embeddings.distances(len(data.classes))
        numbers = numbers_of(
            table, self.attacks, probe=self.probe, watch=self.watch, facts=facts, source=data.source,
            distances=distances, embedding=embedding, checked=bool(self.checks),
        )  # fmt: skip
        return finite(head | numbers | {"remarks": [*data.remarks, *numbers["remarks"]]})

    def _write_gallery(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, table: Any, worst: dict[int, float]
    ) -> None:
        chosen = shown_in_gallery(table, self.attacks, worst, self.gallery)
        kept = gathered(list(self.store.perturbations(trainer.world_size, chosen)))
        broken = {found.index: found for part in kept for found in part}
        if trainer.is_global_zero and broken:
            model, samples = cast(Evaluated, pl_module), _data(trainer).samples(self.split)
            write_gallery(self.folder / "gallery.npz", model, pl_module.device, samples, table, broken)


def _data(trainer: pl.Trainer) -> DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data
