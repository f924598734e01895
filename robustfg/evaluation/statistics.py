"""Counts, rates and their intervals."""

from typing import Any

from scipy.stats import beta, binomtest


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate; (0, 1) where nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def counted(correct: int, n: int) -> dict[str, Any]:
    """An accuracy as it stands in ``summary.json``: counts, rate and 95 % Wilson interval."""
    low, high = wilson(correct, n)
    return {"correct": correct, "n": n, "accuracy": correct / n if n else None, "ci95": [round(low, 4), round(high, 4)]}


def exceeds(count: int, n: int, rate: float, level: float = 0.05) -> bool:
    """Whether ``count`` of ``n`` speaks against a true rate of at most ``rate`` (one-sided exact binomial test)."""
    return n > 0 and bool(binomtest(count, n, rate, alternative="greater").pvalue < level)


def upper_limit(count: int, n: int, confidence: float = 0.95) -> float:
    """The largest rate under which ``count`` of ``n`` or fewer are not surprising (Clopper-Pearson, one-sided)."""
    return float(beta.ppf(confidence, count + 1, n - count)) if count < n else 1.0
