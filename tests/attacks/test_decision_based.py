import pytest
import torch
from torch import nn

from robustfg.attacks import L2, BoundaryAttack, Engine, HopSkipJump


@pytest.mark.parametrize("kind", [HopSkipJump, BoundaryAttack])
def test_what_is_shown_is_the_engine_that_runs(kind):
    attack = kind(name="a", threat=L2(epsilon=0.5), engine=Engine(autocast="bfloat16", compile=True, fixed_batch=4))
    assert attack.shown()["engine"] == {"fold": False, "fixed_batch": 4}


@pytest.mark.parametrize("kind", [HopSkipJump, BoundaryAttack])
def test_a_network_that_could_be_folded_is_asked_itself_and_no_more_often_than_allowed(kind):
    """Along the boundary a copy with batch norms folded would be distrusted, and the network asked once more."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    asked = []
    net.register_forward_hook(lambda module, given, answer: asked.append(len(answer)))
    image = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        label = net(image).argmax(1)
    asked.clear()
    attack = kind(threat=L2(epsilon=1e-6), queries=400, stop_inside=False)
    attempt = next(attack.attempts(net, image, label, torch.arange(4)))
    assert (attempt.forwards <= 400).all()
    assert attempt.forwards.sum() == sum(asked)
