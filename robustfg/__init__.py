"""robustfg: train classifiers that tell very similar classes apart, and say honestly how well they withstand attack.

The public names are loaded when they are first used, so ``import robustfg`` takes no time:

>>> import robustfg
>>> robustfg.attacks.PGD(epsilon="8/255").steps
20
>>> robustfg.Output
<class 'robustfg.core.types.Output'>
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustfg import attacks, data, detectors, evaluation, losses, models, training
    from robustfg.checkpoint import Checkpoint
    from robustfg.classifier import Classifier
    from robustfg.core import Batch, Output, UserError
    from robustfg.data.datamodule import DataModule
    from robustfg.predict import load

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Checkpoint",
    "Classifier",
    "DataModule",
    "Output",
    "UserError",
    "__version__",
    "attacks",
    "data",
    "detectors",
    "evaluation",
    "load",
    "losses",
    "models",
    "training",
]

_MODULES = {
    "Batch": "core.types",
    "Checkpoint": "checkpoint",
    "Classifier": "classifier",
    "DataModule": "data.datamodule",
    "Output": "core.types",
    "UserError": "core.errors",
    "load": "predict",
}
"""Where the names lie that are no subpackages."""


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used (PEP 562)."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
