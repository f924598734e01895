"""Whether the images that a classifier is evaluated on are apart from those that it was trained and chosen on."""

from robustfg.data.datamodule import DataModule
from robustfg.data.hygiene import overlap
from robustfg.evaluation.checks.base import TOLERATED, Check
from robustfg.evaluation.statistics import upper_limit

UNSEEN = 0.001
"""Share of images whose contents may be among the training's: data sets hold a few pictures twice."""


def split_hygiene(data: DataModule, split: str) -> Check | None:
    """The check; None for a model that is no run's, of whose training nothing is known.

    What is counted is a fact about these images, no sample of others, so shares are compared and not tested. Pictures
    that are alike without being the same, such as two frames of a film, are not looked for.

    Args:
        data: the data module.
        split: the name of the split that is evaluated.
    """
    if data.trained is None:
        return None
    trained = {name: part for name, part in data.trained.items() if name != split or part.elsewhere}
    found = overlap((data.split_of(split), data.positions[split]), trained.values())
    how = "name and content" if found.looked_at else "name"
    used = "trained or chosen on" if split == "test" else "trained on"
    detail = f"no {split} image was {used}, by {how} (near-duplicates are not looked for)"
    if found.looked_at and found.looked_at < found.n:
        seen = 100 * upper_limit(0, found.looked_at)
        detail += f"; contents of {found.looked_at:,} are compared, where {seen:.2g} % of all would show (95 %)"
    if found.example:
        detail += f", but {found.example}"
    if found.same > TOLERATED * found.n or found.contents > TOLERATED * found.looked_at:
        return Check("split_hygiene", "fail", found.count, found.n, detail)
    doubts = [part.lacking for part in trained.values() if part.lacking]
    if not trained:
        doubts.append("the images that were trained on are not known")
    if len(trained) < len(data.trained):
        doubts.append("checkpoints are chosen on this split")
    if found.named:
        doubts.append(f"{found.named:,} have names of images that were trained on elsewhere")
    if changed := sum(data.changed.values()):
        doubts.append(f"{changed:,} are other files than when the run began")
    if doubts:
        detail += f": {'; '.join(doubts)}"
    clean = not (doubts or found.same or found.contents > UNSEEN * found.looked_at)
    return Check("split_hygiene", "pass" if clean else "inconclusive", found.count, found.n, detail)
