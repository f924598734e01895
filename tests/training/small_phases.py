"""A loss module with two groups and a survey, the phases that go with it, and how to train it for a moment."""

import torch
import torch.nn.functional as F
from small_classifiers import Backbone, trainer
from torch import nn
from torchvision.transforms import v2
from toy import SIZE, Blobs

from robustfg.classifier import Classifier
from robustfg.core.types import Output
from robustfg.data.datamodule import DataModule
from robustfg.losses import LossModule
from robustfg.losses.base import Survey
from robustfg.training import Phase, Phases, Step


class Means(LossModule):
    """A linear layer on the squared distances to one mean per class."""

    def __init__(self, *, channels, num_classes, dropout=0.0):
        super().__init__()
        self.coefficients = {"pull": 0.5}
        self.means = nn.Parameter(torch.randn(num_classes, channels))
        self.last, self.dropout = nn.Linear(num_classes, num_classes, bias=False), nn.Dropout(dropout)
        self.surveys, self.surveyed = [], None  # in this process: all ids, and the last one's embeddings

    def forward(self, feature_map):
        embedding = self.dropout(feature_map.mean((2, 3)))
        distance = (embedding[:, None] - self.means).square().sum(2)
        return Output(logits=self.last(-distance), embedding=embedding)

    def loss(self, output, label):
        cross_entropy = F.cross_entropy(output.logits, label)
        pull = (output.embedding - self.means[label]).square().sum(1).mean()
        return {"loss": cross_entropy + self.coefficients["pull"] * pull, "cross_entropy": cross_entropy, "pull": pull}

    def groups(self):
        return {"means": [self.means], "last": list(self.last.parameters())}

    def survey(self, name):
        return ClassMeans(self) if name == "means" else super().survey(name)


class ClassMeans(Survey):
    """Moves every mean half the way to where it belongs."""

    def __init__(self, loss):
        self.loss, self.seen = loss, []

    def see(self, feature_map, label, index):
        assert not self.loss.training
        assert not torch.is_grad_enabled()
        rows = zip(index.tolist(), label.tolist(), feature_map.mean((2, 3)).cpu(), strict=True)
        self.seen += rows

    def findings(self):
        return self.seen

    def conclude(self, findings):
        rows = sorted((row for part in findings for row in part), key=lambda row: row[0])
        self.loss.surveys.append([index for index, _, _ in rows])
        self.loss.surveyed = torch.stack([embedding for _, _, embedding in rows])
        for label in range(len(self.loss.means)):
            mine = torch.stack([embedding for _, other, embedding in rows if other == label])
            self.loss.means[label] = (self.loss.means[label] + mine.mean(0)) / 2
        return {"samples": float(len(rows))}


def phases():
    """One epoch of warm-up, two of everything, one of the last layer: 24 steps of six batches an epoch."""
    warm = Phase(
        name="warm", epochs=1, lr={"backbone": None, "means": 0.05, "last": 0}, weight_decay={"means": 0.0},
        coefficients={"pull": 0.1},
    )  # fmt: skip
    joint = Phase(
        name="joint", epochs=2, lr={"backbone": 0.01, "last": None}, schedule=Step(every=1, gamma=0.5),
        weight_decay={"backbone": 0.02},
    )  # fmt: skip
    last = Phase(
        name="last", epochs=1, lr={"backbone": None, "means": None, "last": 0.003}, surveys=["means"],
        fresh_optimizer=True,
    )  # fmt: skip
    return Phases((warm, joint, last))


def classifier(plan, backbone=Backbone, dropout=0.0):
    torch.manual_seed(0)
    return Classifier(
        backbone=backbone(),
        loss=Means(channels=backbone.channels, num_classes=5, dropout=dropout), num_classes=5,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.1), phases=plan,
    )  # fmt: skip


def data(batch_size=8):
    flip = [v2.RandomHorizontalFlip(0.5)]
    return DataModule(source=Blobs(train=60), image_size=SIZE, batch_size=batch_size, num_workers=0, augment=flip)


def fitted(model, batch_size=8, **options):
    trainer(**({"max_epochs": 4, "limit_train_batches": 6} | options)).fit(model, data(batch_size))
    return model
