"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, no download."""

import numpy as np
from sklearn.datasets import load_digits

from robustfg.data.annotations import Taxonomy
from robustfg.data.arrays import ArraySplit
from robustfg.data.splits import stratified


class Digits:
    """The digits with a fixed stratified test split, since they come without one.

    Args:
        test_fraction: share of every class set aside for the test.
    """

    def __init__(self, *, test_fraction: float = 0.25) -> None:
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        labels = digits.target.astype(np.int64)
        train, test = stratified(labels, test_fraction, seed=0)
        self.classes = tuple(str(name) for name in digits.target_names)
        self.genera = None
        self.taxonomy: Taxonomy = {}
        self.train = ArraySplit(images[train], labels[train], "train")
        self.test = ArraySplit(images[test], labels[test], "test")
        self.val = None
