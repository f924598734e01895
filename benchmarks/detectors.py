"""Detectors beside pytorch-ood and scikit-learn: time and peak memory of fitting and scoring, in one process."""

import tracemalloc
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import KernelDensity as TheirKernelDensity
from sklearn.neighbors import NearestNeighbors as TheirNeighbours
from timing import median_ratios, peak_bytes
from torch import Tensor

from robustfg.core.types import Output
from robustfg.detectors import Detector, KernelDensity, Mahalanobis, NearestNeighbours, RelativeMahalanobis

TRAIN, SEEN, DIM, CLASSES, BATCH = 6_000, 256, 256, 100, 250
NEIGHBOURS, BANDWIDTH, ROUNDS = 50, 3.0, 15
MOST_SCORE, MOST_DIFFERENCE = 1.0, 1e-3
MOST_FIT, MOST_STORE = 1.0, 1.75
"""The second: of neighbours beside scikit-learn, which does not sort the samples by class and id."""
PEERS = find_spec("pytorch_ood") is not None

Pair = tuple[Callable[[], object], Callable[[], Tensor]]
"""What fits, and what scores after that."""


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of correlated dimensions around class means, and their classes."""
    generator, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    means, mix = (
        torch.randn(CLASSES, DIM, generator=shared),
        torch.eye(DIM) + torch.randn(DIM, DIM, generator=shared) / 2 / DIM**0.5,
    )
    label = torch.arange(count) % CLASSES
    return means[label] + torch.randn(count, DIM, generator=generator) @ mix, label


def answers(rows: Tensor, label: Tensor) -> Output:
    """A classifier that is right."""
    return Output(logits=torch.nn.functional.one_hot(label, CLASSES).float(), embedding=rows)


def ours(detector: Detector, rows: Tensor, label: Tensor, seen: Output) -> Pair:
    """Fits in batches, as an evaluation does."""
    index = torch.arange(len(rows))
    batches = [(answers(row, of), of, ids) for row, of, ids in zip(rows.split(BATCH), label.split(BATCH),
                                                                   index.split(BATCH), strict=True)]  # fmt: skip

    def fit() -> None:
        look = detector.fit()
        assert look is not None
        for batch in batches:
            look.see(*batch)
        look.conclude([look.findings()])

    @torch.no_grad()
    def score() -> Tensor:
        return torch.cat([detector.score(part) for part in seen.chunk(2)])

    return fit, score


def peers(rows: Tensor, label: Tensor, seen: Output) -> Mapping[str, Mapping[str, Pair]]:
    """The same detectors of other libraries, which put the features of all batches together first.

    Moments are compared in float64 with scikit-learn, and with pytorch-ood in the float32 that it works in.
    """
    plain, of, batches = seen.embedding, label.numpy(), rows.split(BATCH)
    known, means = rows.numpy(), np.zeros((CLASSES, DIM))
    covariance, neighbours = EmpiricalCovariance(assume_centered=True), TheirNeighbours(n_neighbors=NEIGHBOURS)
    kernels: dict[int, TheirKernelDensity] = {}
    unit = torch.nn.functional.normalize

    def fit_covariance() -> None:
        together = torch.cat(batches).double().numpy()
        means[:] = np.stack([together[of == k].mean(0) for k in range(CLASSES)])
        covariance.fit(together - means[of])

    def least_distance() -> Tensor:
        return torch.from_numpy(np.stack([covariance.mahalanobis(plain.numpy() - mean) for mean in means]).min(0))

    def fit_kernels() -> None:
        kernels.update({k: TheirKernelDensity(bandwidth=BANDWIDTH).fit(known[of == k]) for k in range(CLASSES)})

    def density() -> Tensor:
        found, predicted = torch.empty(len(plain)), seen.logits.argmax(1)
        for k, kernel in kernels.items():
            mine = predicted == k
            if mine.any():
                found[mine] = -torch.from_numpy(kernel.score_samples(plain[mine].numpy())).float()
        return found - DIM / 2 * float(np.log(2 * np.pi))

    table: dict[str, dict[str, Pair]] = {
        "mahalanobis": {"scikit-learn": (fit_covariance, least_distance)},
        "relative_mahalanobis": {},
        "kernel_density": {"scikit-learn": (fit_kernels, density)},
        "nearest_neighbours": {
            "scikit-learn": (
                lambda: neighbours.fit(unit(torch.cat(batches)).numpy()),
                lambda: torch.from_numpy(neighbours.kneighbors(unit(plain).numpy())[0][:, -1]),
            )
        },
    }
    if PEERS:
        from pytorch_ood.detector import KNN, RMD
        from pytorch_ood.detector import Mahalanobis as TheirMahalanobis

        for name, theirs in {
            "mahalanobis": TheirMahalanobis(None), "relative_mahalanobis": RMD(None),
            "nearest_neighbours": KNN(None, k=NEIGHBOURS),
        }.items():  # fmt: skip
            table[name]["pytorch-ood"] = (
                lambda theirs=theirs: theirs.fit_features(torch.cat(batches), label),
                lambda theirs=theirs: theirs.predict_features(plain),
            )
    return table


def held(work: Callable[[], object]) -> int:
    """Most memory beyond what was there before, tensors and arrays together."""
    work()
    tracemalloc.start()
    try:
        work()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return arrays + peak_bytes(work, "cpu")


def main() -> None:
    """Prints the ratios, and exits with an error where we are slower or disagree."""
    rows, label = data(TRAIN, 1)
    seen = answers(*data(SEEN, 2))
    detectors: dict[str, Detector] = {
        "mahalanobis": Mahalanobis(shrinkage=0.0),
        "relative_mahalanobis": RelativeMahalanobis(shrinkage=0.0),
        "kernel_density": KernelDensity(bandwidth=BANDWIDTH),
        "nearest_neighbours": NearestNeighbours(neighbours=NEIGHBOURS),
    }
    threads = torch.get_num_threads()
    print(f"{TRAIN} training samples, {SEEN} scored, D {DIM}, K {CLASSES}, {threads} threads; ours / theirs")
    if not PEERS:
        print("pytorch-ood is not installed: compared with scikit-learn alone")
    print(f"{'':38}fit time   memory   score time   memory   correlation")
    within = True
    others = peers(rows, label, seen)
    for name, detector in detectors.items():
        mine = ours(detector, rows, label, seen)
        for library, theirs in others[name].items():
            shown = []
            often = 40 if name == "nearest_neighbours" else 1  # storing takes a millisecond
            for own, other, repeats in zip(mine, theirs, (often, 1), strict=True):
                works = {"theirs": other, "ours": own}
                time = median_ratios(works, "theirs", "cpu", rounds=ROUNDS, repeats=repeats)["ours"]
                shown += [time, held(own) / held(other)]
            stores = (name, library) == ("nearest_neighbours", "scikit-learn")
            within &= shown[2] <= MOST_SCORE and shown[0] <= (MOST_STORE if stores else MOST_FIT)
            pair = torch.stack([mine[1]().double(), theirs[1]().double()])
            difference = 1 - float(torch.corrcoef(pair)[0, 1])
            within &= difference <= MOST_DIFFERENCE
            columns = zip([*shown, 1 - difference], (8, 9, 13, 9, 14), (2, 2, 2, 2, 6), strict=True)
            print(f"{name:22}{library:16}" + "".join(f"{value:{width}.{places}f}" for value, width, places in columns))
    growth = []
    for count in (TRAIN // 2, TRAIN):
        look = Mahalanobis().fit()
        for row, of in zip(rows[:count].split(BATCH), label[:count].split(BATCH), strict=True):
            look.see(answers(row, of), of, of)
        growth.append(sum(t.numel() for m in look.findings() for t in (m.count, m.sums, m.products)))
    print(f"what moment-based detectors hold, {TRAIN} samples / {TRAIN // 2}: {growth[1] / growth[0]:.2f}")
    if not within or growth[0] != growth[1]:
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()
