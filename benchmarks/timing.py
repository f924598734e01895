"""Comparing two functions in one process: interleaved rounds, ratios of medians, peak memory."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def seconds_by_round(
    works: Mapping[str, Work], device: str, rounds: int = 15, repeats: int = 5
) -> dict[str, list[float]]:
    """Time of every function in every round; the rounds take turns, so that a busy machine harms all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            _synchronise(device)
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            _synchronise(device)
            times[name].append((time.perf_counter() - began) / repeats)
    return times


def median_seconds(works: Mapping[str, Work], device: str, rounds: int = 15, repeats: int = 5) -> dict[str, float]:
    """Median time of every function."""
    times = seconds_by_round(works, device, rounds, repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def median_ratios(works: Mapping[str, Work], base: str, device: str, rounds: int, repeats: int) -> dict[str, float]:
    """Of every function, the median over the rounds of its time divided by that of ``base`` in the same round."""
    times = seconds_by_round(works, device, rounds, repeats)
    return {
        name: statistics.median(own / floor for own, floor in zip(values, times[base], strict=True))
        for name, values in times.items()
    }


def peak_bytes(work: Work, device: str) -> int:
    """Most memory that a function held at once beyond what was there before."""
    work()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
