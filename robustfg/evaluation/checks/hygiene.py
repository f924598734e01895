"""Whether the images that a classifier is evaluated on are apart from those that it was trained and chosen on."""

from robustfg.data.datamodule import DataModule
from robustfg.data.hygiene import overlap
from robustfg.evaluation.checks.base import TOLERATED, Check, Status

UNSEEN = 0.001
"""Share of images that may have been trained on without a word: numbers are told to a tenth of a percent."""


def split_hygiene(data: DataModule, split: str) -> Check | None:
    """The check; None where nothing is known of the images that the model was trained on.

    What is counted is a fact about these images, no sample of others, so shares are compared and not tested.

    Args:
        data: the data module.
        split: the name of the split that is evaluated.
    """
    if data.trained is None:
        return None
    trained = [images for name, images in data.trained.items() if name != split]
    detail = f"no {split} image was trained or chosen on"
    tested = data.split_of(split), data.positions[split]
    found = overlap(tested, trained)
    status: Status = "pass" if found.count <= UNSEEN * found.n else "inconclusive"
    if found.count > TOLERATED * found.n:
        status = "fail"
    if found.example:
        detail += f", but {found.example}"
    elif not found.compared:
        status, detail = "inconclusive", detail + ": the images that were trained on are not at hand"
    elif changed := data.changed.get(split):
        status, detail = "inconclusive", detail + f": {changed:,} are other files than when the run began"
    return Check("split_hygiene", status, found.count, found.n, detail)
