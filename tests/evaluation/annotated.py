"""A small annotated data set whose images are fitted to the model, and a classifier with an attention map."""

import os
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from robustfg.attacks import GradientAttack, Linf, Margin, Steepest
from robustfg.classifier import Classifier
from robustfg.core.types import Output
from robustfg.data.arrays import ArraySplit
from robustfg.data.datamodule import DataModule
from robustfg.evaluation import RobustnessEvaluation
from robustfg.losses import Softmax

CLASSES, HEIGHT, WIDTH, SIZE = 4, 30, 20, 16
COLOURS = np.array([(120, 160, 80), (120, 80, 160), (160, 80, 120), (80, 120, 160)])


class AnnotatedSplit(ArraySplit):
    """A bright square, the beak, tells the class by its colour; the tail is always there; the body holds both."""

    def place(self, position):
        generator = np.random.default_rng(position)
        return int(generator.integers(6, 20)), int(generator.integers(1, 14))

    def parts(self, position):
        top, left = self.place(position)
        beak, tail = np.zeros((2, HEIGHT, WIDTH), bool)
        beak[top : top + 5, left : left + 5] = True
        tail[top - 4 : top - 1, left : left + 4] = True
        return {"tail": tail} if position % 7 == 0 else {"beak": beak, "tail": tail}  # some beaks are not seen

    def mask(self, position):
        return np.any(list(self.parts(position).values()), axis=0)

    def box(self, position):
        top, left = self.place(position)
        return left, top - 4, 5, 9

    def keypoints(self, position):
        top, left = self.place(position)
        return {"beak": (left + 2.0, top + 2.0), "tail": (left + 1.5, top - 3.0)} if position % 5 else {}


class Annotated:
    classes = ("a one", "a two", "b one", "b two")
    genera = ("a", "a", "b", "b")
    deciding_parts = (("beak",),) * CLASSES
    val = None

    def __init__(self, test=31):
        self.train, self.test = self._split(60, "train"), self._split(test, "test")

    def _split(self, count, name):
        labels = np.arange(count) % CLASSES
        images = np.random.default_rng(0).integers(0, 80, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
        split = AnnotatedSplit(images, labels.astype(np.int64), name)
        for position, label in enumerate(labels):
            top, left = split.place(position)
            clear = 0.2 + 0.8 * (position % 6) / 5  # less clear birds are easier to attack
            images[position, top : top + 5, left : left + 5] = 120 + clear * (COLOURS[label] - 120)
        return split


class Attentive(Softmax):
    """Weights positions by how bright they are; dead on images whose first pixel is bright."""

    def forward(self, feature_map):
        bright = feature_map[:, :3].mean(1, keepdim=True)
        dead = feature_map[:, :1, :1, :1] > 0.28
        attention = torch.where(dead, 0.0, (bright - bright.amin((2, 3), keepdim=True)) ** 2)
        embedding = (feature_map * attention).sum((2, 3)) / attention.sum((2, 3)).clamp_min(1e-6)
        logits = self.classifier(embedding)
        distance = (feature_map[:, None] - self.classifier.weight[:, :, None, None]).square().sum(2)
        return Output(logits, embedding, maps={"attention": attention, "class_distance": distance})

    def evidence(self, feature_map, output):
        closest = output.maps["class_distance"].take_along_dim(output.logits.argmax(1)[:, None, None, None], 1)[:, 0]
        return {"attention": output.maps["attention"][:, 0], "prototype": 1 / (1 + closest)}


class Pooled(nn.Module):
    channels = 3

    def forward(self, image):
        return nn.functional.avg_pool2d(image, 2)


def classifier():
    loss = Attentive(channels=3, num_classes=CLASSES)
    colours = torch.tensor(COLOURS).float() / 255
    loss.classifier.weight.data, loss.classifier.bias.data = 30 * colours, -15 * colours.square().sum(1)
    return Classifier(backbone=Pooled(), loss=loss, num_classes=CLASSES).eval()


def suite():
    return {
        name: GradientAttack(name=name, threat=Linf(epsilon="10/255"), step=Steepest(size="eps/4"), steps=steps,
                             objective=Margin(), random_start=True, restarts=2)
        for name, steps in (("short", 1), ("long", 6))
    }  # fmt: skip


def data_module(batch_size=8):
    return DataModule(source=Annotated(), image_size=SIZE, crop_ratio=0.8, batch_size=batch_size, num_workers=0)


def evaluate(folder, batch_size=8, **trainer):
    callback = RobustnessEvaluation(
        attacks=suite(), folder=folder, about={"run": "r", "data": "annotated", "loss": "attentive", "seed": 0},
        checks=8, gallery=3,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **trainer,
    )  # fmt: skip
    trainer.test(classifier(), data_module(batch_size), verbose=False)
    return callback.summary


if __name__ == "__main__":  # one of two processes: python annotated.py rank port folder
    from pytorch_lightning.plugins.environments import LightningEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    rank, port, place = *map(int, sys.argv[1:3]), Path(sys.argv[3])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())
    evaluate(place, batch_size=5, strategy=strategy, devices=2)
