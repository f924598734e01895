"""Square in l2 and l1 against the released code, fed with the same random numbers."""

import pytest
import torch

from robustfg.attacks import L1, L2, Engine, Square
from robustfg.attacks.black_box.random_search import BLOCK
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.threats.lp import l1_projection

released = pytest.importorskip("pyautoattack.square")
INDEX, LABEL, QUERIES = torch.tensor([5]), torch.tensor([0]), 40


class Fed(released.SquareAttack):
    """Takes the windows, orientations and signs that ``Draws`` gives one sample."""

    def feed(self, draws, channels, height, width):
        side = min(height, width) // 5
        down, across = height // side, width // side
        grid = draws.uniforms((channels + 1) * down * across, INDEX, "grid").view(channels + 1, -1)
        self.turns, self.signs, self.places = (grid[-1] < 0.5).tolist(), list(grid[:-1].T), []
        for query in range(1, QUERIES):
            block = draws.uniforms(BLOCK * (5 + channels), INDEX, "proposals", query // BLOCK)
            drawn = block.view(BLOCK, -1)[query % BLOCK]
            self.places += drawn[:4].double().tolist()
            self.turns.append(bool(drawn[4] < 0.5))
            self.signs.append(drawn[5:])

    def p_selection(self, it):
        self.n_queries = QUERIES  # the start included, as ours are counted
        share = super().p_selection(it)
        self.n_queries = QUERIES - 1
        return share

    def random_int(self, low=0, high=1, shape=None):
        return torch.tensor([int(self.places.pop(0) * (high + 1))])  # the last row and column, too

    def random_choice(self, shape):
        return (self.signs.pop(0) < 0.5).float().view(shape) * 2 - 1

    def eta(self, s):
        wanted = self.turns.pop(0)
        while True:  # it turns its bumps at random
            bumps = super().eta(s)
            if (bumps[: s // 2].sum() < bumps[:, : s // 2].sum()) == wanted:
                return bumps


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("threat", [L1(epsilon=6), L2(epsilon=1.5)], ids=lambda t: t.norm)
def test_every_image_asked_about_is_the_one_the_released_code_asks_about(threat, rescale, monkeypatch):
    """In float64 with our l1 projection: theirs is in float32, and what that rounds in an empty window it takes for a
    direction to keep."""
    monkeypatch.setattr(released, "L1_projection", lambda x, y, eps: l1_projection(y, x, eps) - y)
    generator = torch.Generator().manual_seed(0)
    clean = 0.2 + 0.6 * torch.rand(1, 3, 20, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 20, 20, generator=generator, dtype=torch.float64)

    def watched(seen):
        def model(image):
            seen.append(image.clone())
            score = (image * weight).flatten(1).sum(1) + 500
            return torch.stack([score, torch.zeros_like(score)], 1)

        return model

    ours, theirs = [], []
    attack = Square(threat=threat, queries=QUERIES, rescale_schedule=rescale, engine=Engine(fold=False))
    list(attack.attempts(watched(ours), clean, LABEL, INDEX))
    peer = Fed(
        watched(theirs), norm=threat.norm.upper(), eps=threat.radius, n_queries=QUERIES - 1, p_init=0.8,
        resc_schedule=rescale, device="cpu",
    )  # fmt: skip
    peer.init_hyperparam(clean)
    peer.feed(Draws(0, "attack", 0, 0), *clean.shape[1:])
    peer.attack_single_run(clean, LABEL)
    assert len(ours) == len(theirs) == QUERIES
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4)
