"""A data module that takes the splits of a run, whatever files have come or gone since."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robustfg.core.errors import UserError
from robustfg.data.annotations import origin_of
from robustfg.data.datamodule import DataModule, members_of
from robustfg.data.source import Split
from robustfg.data.splits import Positions, balanced_subset
from robustfg.data.stored import Drawn, Members, Splits, by_id, found_in, several


def follow(data: DataModule, stored: Splits, *, whole: Sequence[str] = ()) -> None:
    """Puts the splits of a run in the place of those that were drawn. Samples that are new here are in none of them.

    Args:
        data: as made from its options.
        stored: the splits.
        whole: those of which every sample must be here; from others what is gone is left out, with a remark.

    Raises:
        UserError: if classes or labels differ, or what must be whole is not.
    """
    if stored.classes != data.classes or stored.origin != origin_of(data.source):
        raise UserError("data: its classes or options are not those of the run; choose the data of the run")
    own = data.splits()
    if own.same(stored):
        data.stored = stored
        return
    places = _places(data, stored)
    remarks = []
    for name, part in stored.members.items():
        gone = [part.keys[place] for place in np.flatnonzero(places[name] < 0).tolist()]
        if gone and name in whole:
            raise UserError(
                f"data: {several(gone, f'{name} images of the run')} gone; put them back, or choose another run_name "
                "to begin anew with what is there"
            )
        if gone:
            remarks.append(f"Left out: {several(gone, f'of {len(part.keys):,} {name} images of the run')} gone.")
    labels = stored.members["test"].labels
    count = len(labels) if data.max_test_samples is None else data.max_test_samples
    places["test"] = places["test"][balanced_subset(labels, count)]
    positions = {name: there[there >= 0] for name, there in places.items()}
    if not len(positions["test"]):
        raise UserError("data: no test image of the run is here; set data.root to where its images lie")
    known = {key for part in stored.members.values() for key in part.keys}
    if new := [key for part in own.members.values() for key in part.keys if key not in known]:
        remarks.append(f"In no split: {several(new, 'images')} new since the run began.")
    data.take(stored, positions, remarks)
    trained = data.training_images()
    for name in trained:
        if gone := [stored.members[name].keys[place] for place in np.flatnonzero(places[name] < 0).tolist()]:
            lacking = f"{len(gone):,} {name} images of the run are gone"
            trained[name] = replace(trained[name], names=gone, lacking=lacking)
    data.trained = trained
    for name, part in stored.members.items():
        if changed := _changed(data, name, part):
            data.changed[name] = len(changed)
            data.remarks.append(f"Changed: {several(changed, f'{name} images')} other files than when the run began.")


def _places(data: DataModule, stored: Splits) -> dict[str, Positions]:
    """Where the samples of every split lie in those of the source, ``(N,)``; -1 for those that are gone."""
    members, source = stored.members, data.source
    if isinstance(source, Drawn):
        labels = {name: source.labels_of(part.keys) for name, part in members.items()}
        trained = [members["train"], members["val"]] if stored.carved else [members["train"]]
        source.take(by_id(*trained), by_id(members["test"]), None if stored.carved else by_id(members["val"]))
        places = {name: np.where(labels[name] < 0, -1, part.ids) for name, part in members.items()}
    else:
        if stored.carved != (source.val is None):
            raise UserError("data: the run had another validation split; choose the data with the options of the run")
        places = {name: found_in(data.split_of(name), part) for name, part in members.items()}
        labels = {name: _labels(data.split_of(name), there) for name, there in places.items()}
    for name, part in members.items():
        if (differing := np.flatnonzero((places[name] >= 0) & (labels[name] != part.labels))).size:
            now, was = (data.classes[found[differing[0]]] for found in (labels[name], part.labels))
            raise UserError(
                f"data: {part.keys[differing[0]]} is of the class {now}, and was of {was} when the run began; put it "
                "back, or train anew"
            )
    return places


def _labels(split: Split, places: Positions) -> Positions:
    labels = np.append(np.asarray(split.labels), -1)
    found: Positions = labels[places]
    return found


def _changed(data: DataModule, name: str, part: Members) -> list[str]:
    """Keys of files that are not as large as they were."""
    now = members_of(data.split_of(name), data.positions[name])
    if now.sizes is None or part.sizes is None:
        return []
    before = dict(zip(part.keys, part.sizes.tolist(), strict=True))
    return [key for key, size in zip(now.keys, now.sizes.tolist(), strict=True) if before[key] != size]
