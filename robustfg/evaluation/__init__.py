"""The robustness evaluation: records, aggregation, statistics, checks."""

from robustfg.evaluation.callback import RobustnessEvaluation
from robustfg.evaluation.validation import ValidationRobustness

__all__ = ["RobustnessEvaluation", "ValidationRobustness"]
