"""Detection: what a detector is worth against attackers who know more and more of it."""

from robustfg.evaluation.detection.options import Detection

__all__ = ["Detection"]
