"""From image files to classes, probabilities and verdicts, row by row."""

from robustfg.prediction.device import device_of
from robustfg.prediction.own_score import OwnScore
from robustfg.prediction.paths import images_in
from robustfg.prediction.predictor import Predictor, Row, refuse_numbers
from robustfg.prediction.tally import Tally
from robustfg.prediction.writers import kept, opened, writer_of

__all__ = [
    "OwnScore",
    "Predictor",
    "Row",
    "Tally",
    "device_of",
    "images_in",
    "kept",
    "opened",
    "refuse_numbers",
    "writer_of",
]
