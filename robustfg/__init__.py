"""robustfg: train classifiers that tell very similar classes apart, and say honestly how well they withstand attack."""

__version__ = "0.1.0"
