import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import ProtoPNet

LABEL = torch.tensor([0, 3, 2, 2, 1])


def protopnet(**options):
    torch.manual_seed(0)
    options = {"prototypes_per_class": 3, "prototype_depth": 5} | options
    return ProtoPNet(channels=6, num_classes=4, **options).double()


def features():
    return torch.randn(5, 6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"cluster": 2.0, "separation": 0.5, "l1": 0.1}, {"similarity_epsilon": 0.1}])
def test_terms_and_gradients_equal_the_formulas(options):
    module = protopnet(**options)
    ours, theirs = (features().requires_grad_() for _ in range(2))
    terms = module.loss(module(ours), LABEL)
    head, get = module.prototype, {"cluster": 0.8, "separation": 0.08, "l1": 1e-4, "similarity_epsilon": 1e-4} | options
    latent, classes = head.add_on(theirs), torch.arange(12) // 3
    smallest = (latent[:, None] - head.prototypes.vectors[None, :, :, None, None]).square().sum(2).flatten(2).amin(2)
    similarity = ((smallest + 1) / (smallest + get["similarity_epsilon"])).log()
    own = classes == LABEL[:, None]
    expected = {
        "classification": F.cross_entropy(similarity @ head.last_layer.weight.t(), LABEL),
        "cluster": torch.stack([row[mask].min() for row, mask in zip(smallest, own, strict=True)]).mean(),
        "separation": torch.stack([row[~mask].min() for row, mask in zip(smallest, own, strict=True)]).mean(),
        "l1": head.last_layer.weight[classes != torch.arange(4)[:, None]].abs().sum(),
    }
    expected["loss"] = (
        expected["classification"] + get["cluster"] * expected["cluster"]
        - get["separation"] * expected["separation"] + get["l1"] * expected["l1"]
    )  # fmt: skip
    for name, term in expected.items():
        assert terms[name].item() == pytest.approx(term.item(), abs=1e-10), name
    inputs = list(module.parameters())
    found = torch.autograd.grad(terms["loss"], [ours, *inputs])
    for mine, value in zip(found, torch.autograd.grad(expected["loss"], [theirs, *inputs]), strict=True):
        assert torch.allclose(mine, value, rtol=1e-8, atol=1e-10)


def test_phases_find_every_parameter_once():
    module = protopnet()
    groups = module.groups()
    assert sorted(groups) == ["add_on", "last_layer", "prototypes"]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("option", ["cluster", "separation", "l1"])
def test_negative_weights_are_refused_by_name(option):
    with pytest.raises(UserError, match=f"loss.{option} must be >= 0"):
        protopnet(**{option: -1.0})


def test_there_is_no_other_survey():
    with pytest.raises(UserError, match="no survey named 'pull'"):
        protopnet().survey("pull")
