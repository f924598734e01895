"""Answers of an imaginary classifier, and how detectors are fitted on them."""

import torch

from robustfg.core.types import Output
from robustfg.detectors import (
    Energy,
    FeatureSqueezing,
    KernelDensity,
    Likelihood,
    LocalIntrinsicDimensionality,
    Mahalanobis,
    MaxLogit,
    MaxSoftmax,
    NearestNeighbours,
    PrototypeSimilarity,
    RelativeMahalanobis,
)

CLASSES, DIM = 4, 6
LEARNERS = {
    "mahalanobis": Mahalanobis,
    "mahalanobis_layers": lambda: Mahalanobis(features=["embedding", "inner"]),
    "relative": RelativeMahalanobis,
    "relative_layers": lambda: RelativeMahalanobis(features=["embedding", "inner"]),
    "kernel": KernelDensity,
    "kernel_few": lambda: KernelDensity(per_class=7, bandwidth=0.8),
    "neighbours": lambda: NearestNeighbours(neighbours=5),
    "neighbours_plain": lambda: NearestNeighbours(neighbours=5, normalise=False, per_class=9),
    "lid": lambda: LocalIntrinsicDimensionality(neighbours=8, per_class=10),
    "lid_layers": lambda: LocalIntrinsicDimensionality(features=["embedding", "inner"], neighbours=8),
    "prototype": PrototypeSimilarity,
}
READERS = {"likelihood": Likelihood, "max_logit": MaxLogit, "max_softmax": MaxSoftmax, "energy": Energy}
SQUEEZERS = {"squeezing": FeatureSqueezing}


def samples(count=90, seed=0, dim=DIM, classes=CLASSES):
    """Classes of different sizes around means of their own, with correlated features that are far from zero."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.Generator().manual_seed(100)
    means, mix = torch.randn(classes, dim, generator=shared), torch.randn(dim, dim, generator=shared)
    label = (torch.rand(count, generator=generator) ** 2 * classes).long()
    rows = 5 + 2 * means[label] + torch.randn(count, dim, generator=generator) @ mix
    return rows, label, torch.randperm(10 * count, generator=generator)[:count]


def answer(rows, label, maps=None):
    """The classifier predicts the label; its inner layer is half of the embedding, seen crooked."""
    logits = 3 * torch.nn.functional.one_hot(label, CLASSES).to(rows) + rows[:, :CLASSES] / 100
    inner = (rows[:, : DIM // 2] * 2 + 1).tanh() + rows[:, 1 : 1 + DIM // 2]
    return Output(logits=logits, embedding=rows, layers={"inner": inner}, maps=maps or {})


def learn(detector, rows, label, index, shards=(slice(None),), batch=16):
    """Fits on shards, each in batches, and concludes from all."""
    looks = [detector.fit() for _ in shards]
    for look, shard in zip(looks, shards, strict=True):
        parts = (value[shard].split(batch) for value in (rows, label, index))
        for row, of, ids in zip(*parts, strict=True):
            if len(row):
                look.see(answer(row, of), of, ids)
    findings = [look.findings() for look in looks]
    for look in looks[-1:]:
        look.conclude(findings)
    return detector
