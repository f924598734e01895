"""Numbers of one map on one image, worked out by hand."""

import numpy as np
import pytest
import torch
from toy import row

from robustfg.core.types import Batch
from robustfg.data.samples import FitSquare
from robustfg.evaluation.attention import attention_of
from robustfg.evaluation.localisation import localise, sizes
from robustfg.evaluation.records import table_of
from robustfg.evaluation.regions import TOLERANCE, Annotations, Regions

SIZE = 8


class Split:
    """What a test lays down about one image."""

    labels, keys = np.zeros(1, np.int64), ("one",)

    def __init__(self, height=SIZE, width=SIZE, **told):
        self.pixels = np.zeros((height, width, 3), np.uint8)
        for name, value in told.items():
            setattr(self, name, lambda position, value=value: value)

    def image(self, position):
        return self.pixels


class Source:
    deciding_parts = (("beak", "crown"),)


def regions(size=SIZE, fit=None, **told):
    zero = torch.zeros(1, dtype=torch.int64)
    return Annotations(Source(), Split(**told), fit or FitSquare(size=size)).of(Batch(zero, zero, zero))


def rectangle(top, bottom, left, right, size=SIZE):
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def numbers(cells, found):
    return {name: float(value) for name, value in localise({"m": torch.as_tensor(cells)[None].float()}, found).items()}


def test_mass_is_the_share_of_the_map_inside_the_parts_that_tell_the_class():
    parts = {"beak": rectangle(0, 4, 0, 4), "tail": rectangle(4, 8, 4, 8)}
    found = regions(parts=parts)
    cells = np.zeros((SIZE, SIZE))
    cells[1, 1], cells[6, 6], cells[0, 7] = 3, 1, 2
    told = numbers(cells, found)
    assert told["m/parts_mass"] == pytest.approx(3 / 6)  # the tail does not tell the class
    assert told["m/object_mass"] == pytest.approx(4 / 6)
    assert told["m/parts_hit"] == 1
    assert {name: float(v) for name, v in sizes(found).items()}["places/parts_area"] == 16 / 64


def test_coarse_maps_are_brought_to_image_size_bilinearly():
    cells = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    mask = rectangle(2, 7, 1, 4)
    told = numbers(cells, regions(mask=mask))
    naive = np.zeros((SIZE, SIZE))
    for y in range(SIZE):
        for x in range(SIZE):  # half-pixel centres, clamped at the border
            v, u = ((p + 0.5) * n / SIZE - 0.5 for p, n in ((y, 3), (x, 5)))
            for j in range(3):
                for i in range(5):
                    weight = max(0, 1 - abs(min(max(v, 0), 2) - j)) * max(0, 1 - abs(min(max(u, 0), 4) - i))
                    naive[y, x] += weight * float(cells[j, i])
    assert told["m/object_mass"] == pytest.approx(naive[mask].sum() / naive.sum(), rel=1e-6)


def test_the_maximum_may_miss_by_the_stated_tolerance_and_no_more():
    size = 224
    found = regions(size, height=size, width=size, mask=rectangle(0, 50, 0, 50, size))
    for column, hit in ((64, 1), (65, 0)):  # the region ends with column 49
        cells = torch.zeros(size, size)
        cells[20, column] = 1
        assert numbers(cells, found)["m/object_hit"] == hit
    assert TOLERANCE * size == pytest.approx(15)


def test_the_maximum_is_the_centre_of_the_best_cell():
    cells = torch.zeros(2, 2)
    cells[1, 0] = 1
    for left, hit in ((2, 1), (4, 0)):
        assert numbers(cells, regions(mask=rectangle(6, 7, left, left + 1)))["m/object_hit"] == hit


def test_keypoints_count_where_the_map_reaches_half_its_maximum():
    found = regions(keypoints={"beak": (1.0, 2.0), "eye": (5.0, 5.0), "out": (-3.0, 2.0)})
    cells = np.zeros((SIZE, SIZE))
    cells[2, 1], cells[5, 5], cells[7, 0] = 0.5, 0.49, 1.0
    told = numbers(cells, found)
    assert told["m/keypoints_covered"] == 1 / 2
    assert told["m/covered"] == 2 / 64
    assert told["m/keypoints_hit"] == 0
    cells[2, 1] = 2
    assert numbers(cells, found)["m/keypoints_hit"] == 1


def test_a_box_holds_the_pixels_whose_centres_it_contains():
    found = regions(box=(1.4, 2.6, 3.0, 2.6))  # columns 1.4 to 4.4, rows 2.6 to 5.2
    assert torch.equal(found.masks["box"][0], torch.as_tensor(rectangle(3, 5, 1, 4)))


def test_annotations_follow_the_image_through_resizing_and_cropping():
    mask = np.zeros((32, 16), bool)
    mask[10:14, 6:10] = True
    fit = FitSquare(size=32)  # twice as large, then the middle 32 of 64 rows
    found = regions(fit=fit, height=32, width=16, mask=mask, keypoints={"a": (6.0, 10.0), "cut": (6.0, 1.0)})
    assert torch.equal(found.masks["object"][0], torch.as_tensor(rectangle(4, 12, 12, 20, 32)))
    assert found.keypoints.tolist() == [[[4, 12]]]


@pytest.mark.parametrize("cells", [torch.zeros(4, 4), -torch.ones(4, 4), torch.full((4, 4), torch.nan),
                                   torch.tensor([[1.0, torch.inf], [0.0, 1.0]])], ids=str)  # fmt: skip
def test_a_dead_map_is_counted_and_scores_nothing(cells):
    told = numbers(cells, regions(mask=rectangle(0, 4, 0, 4)))
    assert told.pop("m/dead") == 1
    assert told
    assert all(np.isnan(value) for value in told.values())


def test_a_sample_without_the_region_is_left_out_and_one_dead_map_does_not_spoil_the_others():
    masks = torch.stack([torch.zeros(SIZE, SIZE), torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE)]).bool()
    found = localise({"m": torch.stack([torch.ones(4, 4), torch.zeros(4, 4), torch.ones(4, 4)])},
                     Regions({"object": masks}, {"object": masks}))  # fmt: skip
    assert found["m/object_mass"].isnan().tolist() == [True, True, False]
    assert found["m/object_mass"][2] == 1
    assert found["m/dead"].tolist() == [0, 1, 0]


def test_images_of_one_batch_may_have_different_annotations():
    class Varying(Split):
        def parts(self, position):
            return {} if position == 0 else {"beak": rectangle(0, 4, 0, 4)}

        def keypoints(self, position):
            return {str(name): (float(name), 1.0) for name in range(2 * position)}

    index = torch.arange(3)
    found = Annotations(Source(), Varying(), FitSquare(size=SIZE)).of(
        Batch(index, torch.zeros(3, dtype=torch.int64), index)
    )
    told = localise({"m": torch.ones(3, 2, 2)}, found)
    assert told["m/parts_mass"].isnan().tolist() == [True, False, False]
    assert told["m/keypoints_covered"].isnan().tolist() == [True, False, False]
    assert told["m/keypoints_covered"][1:].tolist() == [1, 1]
    assert found.keypoints[1].tolist() == [[1, 0], [1, 1], [-1, -1], [-1, -1]]
    only = found[torch.tensor([False, True, False])]
    assert torch.equal(only.masks["parts"][0], found.masks["parts"][1])
    assert torch.equal(only.keypoints, found.keypoints[1:2])


def test_a_map_of_one_position_says_nothing():
    assert localise({"m": torch.ones(2, 1, 1)}, Regions({}, {})) == {}


def told(index, attack, restart, margin, **evidence):
    evidence = {name.replace("__", "/"): value for name, value in evidence.items()}
    return row(index, attack, restart, margin > 0, margin=margin) | ({"evidence": evidence} if evidence else {})


def test_populations_are_clean_before_attacked_and_broken():
    place = {"places__parts_area": 0.1, "places__parts_near": 0.2}
    table = table_of(
        [
            told(1, "clean", 0, 2.0, m__dead=0.0, m__parts_mass=0.6, m__parts_hit=1.0, **place),
            told(1, "a", 0, 1.0, m__dead=0.0, m__parts_mass=0.5, m__parts_hit=1.0),
            told(1, "a", 1, -1.0, m__dead=0.0, m__parts_mass=0.1, m__parts_hit=0.0),  # the worst one
            told(1, "b", 0, -0.5, m__dead=0.0, m__parts_mass=0.9, m__parts_hit=1.0),
            told(2, "clean", 0, -1.0, m__dead=0.0, m__parts_mass=0.0, m__parts_hit=0.0, **place),  # wrong when clean
            *(told(2, attack, restart, -1.0) for attack, restart in (("a", 0), ("a", 1), ("b", 0))),
            told(3, "clean", 0, 2.0, m__dead=0.0, m__parts_mass=0.3, m__parts_hit=1.0, **place),
            told(3, "a", 0, 0.4, m__dead=1.0),
            told(3, "a", 1, 0.4),  # was not attacked again
            told(3, "b", 0, 0.9, m__dead=0.0, m__parts_mass=0.9, m__parts_hit=1.0),
        ]
    )
    found = attention_of(table, ["a", "b"])["m"]
    assert [found[name]["n"] for name in ("clean", "before", "attacked", "broken")] == [3, 2, 2, 1]
    assert [found[name]["dead"] for name in ("clean", "before", "attacked", "broken")] == [0, 0, 1, 0]
    assert found["clean"]["parts"]["mass"] == pytest.approx(0.3)
    assert found["clean"]["parts"]["ratio"] == pytest.approx(3.0)
    assert found["before"]["parts"]["mass"] == pytest.approx(0.45)
    assert found["before"]["parts"]["hits"] == 2
    assert found["attacked"]["parts"] == pytest.approx(
        {"n": 1, "mass": 0.1, "area": 0.1, "ratio": 1.0, "hits": 0, "chance": 0.2}
    )
    assert found["broken"] == found["attacked"] | {"n": 1, "dead": 0}


def test_no_maps_give_no_block():
    assert attention_of(table_of([row(1, "clean", 0, True), row(1, "a", 0, True)]), ["a"]) == {}
