from dataclasses import dataclass

import pytest
import torch
from test_gradient import LABEL, images

from robustfg.attacks import Linf, MinimumNormAttack

FIRST = torch.tensor([0.30, 0.05, 0.30, 0.02, 0.20, 0.08], dtype=torch.float64)
SECOND = torch.tensor([0.20, 0.04, 0.05, 0.30, 0.30, 0.01], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class TwoLooks(MinimumNormAttack):
    """Brightens every image of a sample by the two given amounts, one after the other."""

    def describe(self):
        return {}

    def shrink(self, batch, draws, restart):
        first, second = (amount[batch.index][:, None, None, None] for amount in (FIRST, SECOND))
        batch.evaluate(batch.clean + first)
        (second,) = batch.drop_fooled(second)
        if len(batch):
            batch.evaluate(batch.clean + second)


def brightened(image):
    """Right on images up to 0.3 + 0.015 on average, which clean ones are, wrong above."""
    score = 0.315 - image.flatten(1).mean(1)
    return torch.stack([score, -score], 1)


def attempt(**options):
    clean = images() * 0 + 0.3
    attack = TwoLooks(threat=Linf(epsilon=0.1), **options)
    found = next(attack.attempts(brightened, clean, LABEL * 0))
    return found, (found.image - clean).flatten(1).amax(1)


def test_the_smallest_wrong_image_counts_and_one_outside_is_taken_to_the_ball():
    found, size = attempt(stop_inside=False)
    # both outside; both inside; second inside; first inside; both outside; the second is too small to be wrong
    assert torch.allclose(size, torch.tensor([0.1, 0.04, 0.05, 0.02, 0.1, 0.08], dtype=torch.float64))
    assert found.margin.isnan().tolist() == [True, False, False, False, True, False]
    assert torch.allclose(found.margin[1], torch.tensor(-0.05, dtype=torch.float64))
    assert found.forwards.tolist() == [2] * 6


def test_by_default_the_first_wrong_image_inside_is_the_last():
    found, size = attempt()
    assert torch.allclose(size, torch.tensor([0.1, 0.05, 0.05, 0.02, 0.1, 0.08], dtype=torch.float64))
    assert found.margin.isnan().tolist() == [True, False, False, False, True, False]
    assert found.forwards.tolist() == [2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("stop_inside", [True, False])
def test_restarts_go_only_to_samples_that_stand(stop_inside):
    attack = TwoLooks(threat=Linf(epsilon=0.1), stop_inside=stop_inside, restarts=2)
    _, second = attack.attempts(brightened, images() * 0 + 0.3, LABEL * 0)
    assert second.forwards.tolist() == [2, 0, 0, 0, 2, 0]


def test_retired_samples_keep_their_result_and_the_others_go_on():
    clean, seen = images() * 0 + 0.3, []

    class Retiring(TwoLooks):
        def shrink(self, batch, draws, restart):
            batch.evaluate(batch.clean + FIRST[:, None, None, None])
            index, number, left = self.retire(batch, FIRST >= 0.2, batch.index, 7, None)
            seen.append((index.tolist(), number, left, len(batch)))
            assert torch.equal(batch.best()[0], batch.clean + FIRST[index][:, None, None, None])
            batch.evaluate(batch.clean + SECOND[index][:, None, None, None])

    found = next(Retiring(threat=Linf(epsilon=0.06), stop_inside=False).attempts(brightened, clean, LABEL * 0))
    assert seen == [([1, 3, 5], 7, None, 3)]
    size = (found.image - clean).flatten(1).amax(1)
    assert torch.allclose(size, torch.tensor([0.06, 0.04, 0.06, 0.02, 0.06, 0.06], dtype=torch.float64))
    assert found.forwards.tolist() == [1, 2, 1, 2, 1, 2]
