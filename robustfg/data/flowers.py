"""Oxford Flowers-102: photographs of 102 flowers common in the United Kingdom."""

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import Flowers102

from robustfg.core.errors import UserError
from robustfg.data.annotations import Taxonomy
from robustfg.data.files import FileSplit
from robustfg.data.official import Official, labelled, matlab, required

FLOWERS = Official(
    name="Oxford Flowers-102",
    folder="flowers-102",
    archive="102flowers.tgz, imagelabels.mat and setid.mat (https://www.robots.ox.ac.uk/~vgg/data/flowers/102)",
    classes=102,
    images={"train": 1020, "val": 1020, "test": 6149},
    downloads=True,
)
NAMES = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon
orchid; bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow
iris; globe-flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily;
pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers; stemless
gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly;
ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword
lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia;
wild pansy; primula; sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink-yellow
dahlia?; cautleya spicata; japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum;
spring crocus; bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple; morning
glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree
mallow; magnolia; cyclamen; watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea;
camellia; mallow; mexican petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""
"""In the order of the class numbers, as the authors' page lists them."""


class Flowers:
    """Oxford Flowers-102 (Nilsback and Zisserman 2008) with its official split of 1,020, 1,020 and 6,149 images.

    The folder holds ``jpg``, ``imagelabels.mat`` and ``setid.mat``. No coarser level is known.

    Args:
        root: that folder, or the one above ``flowers-102``, where torchvision puts it.
        download: fetch it with torchvision, which checks the MD5 of all three files, if it is missing.
        expect_official: refuse any other number of classes or images than the official one.
    """

    def __init__(self, *, root: str | None, download: bool = False, expect_official: bool = True) -> None:
        if download:
            FLOWERS.fetch(root, lambda above: Flowers102(above, download=True))
        folder = FLOWERS.place(root, "imagelabels.mat")
        (numbers,) = matlab(folder / "imagelabels.mat", folder, "labels")
        images = matlab(folder / "setid.mat", folder, "trnid", "valid", "tstid")
        self.classes = tuple(name.strip() for name in " ".join(NAMES.split()).split(";"))
        self.genera = None
        self.taxonomy: Taxonomy = {}
        known = {number: number - 1 for number in range(1, len(self.classes) + 1)}
        labels = labelled([int(number) for number in numbers], known, folder / "imagelabels.mat")
        required(folder / "jpg", folder)

        def split(ids: NDArray[np.integer]) -> FileSplit:
            if len(ids) and not (ids.min() >= 1 and ids.max() <= len(labels)):
                odd = ids.min() if ids.min() < 1 else ids.max()
                raise UserError(f"{folder / 'setid.mat'} names the image {odd}; the images are 1 to {len(labels)}")
            return FileSplit(folder, [f"jpg/image_{number:05d}.jpg" for number in ids], labels[ids.astype(int) - 1])

        self.train, self.val, self.test = map(split, images)
        given = {"train": self.train, "val": self.val, "test": self.test}
        FLOWERS.check(folder, self.classes, given, whole=expect_official)
