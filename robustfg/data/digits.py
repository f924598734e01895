"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, no download."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from robustfg.data.annotations import Taxonomy
from robustfg.data.arrays import ArraySplit
from robustfg.data.splits import Positions, stratified
from robustfg.data.stored import Members


class Digits:
    """The digits with a fixed stratified test split, since they come without one.

    Args:
        test_fraction: share of every class set aside for the test.
    """

    def __init__(self, *, test_fraction: float = 0.25) -> None:
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self._every = ArraySplit(images, digits.target.astype(np.int64), "digits")
        self.classes = tuple(str(name) for name in digits.target_names)
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.train, self.test = map(self._part, stratified(self._every.labels, test_fraction, seed=0))
        self.val = None

    def take(self, train: Members, test: Members, val: Members | None) -> None:
        """Makes these digits the splits; satisfies ``Drawn``."""
        self.train, self.test = (self._part(self._places(members.keys)) for members in (train, test))

    def labels_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        places = self._places(keys)
        return np.where(places < 0, -1, self._every.labels[places])

    def _places(self, keys: Sequence[str]) -> Positions:
        place = {key: position for position, key in enumerate(self._every.keys)}
        return np.array([place.get(key, -1) for key in keys], np.int64)

    def _part(self, positions: Positions) -> ArraySplit:
        every = self._every
        return ArraySplit(every.images[positions], every.labels[positions], every.name, positions)
