"""The robustness evaluation: records, aggregation, statistics, checks."""

from robustfg.evaluation.callback import RobustnessEvaluation, ValidationAttack

__all__ = ["RobustnessEvaluation", "ValidationAttack"]
