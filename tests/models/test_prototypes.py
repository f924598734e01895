import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.core.errors import UserError
from robustfg.models.prototype_head import PrototypeHead, separation
from robustfg.models.prototypes import Prototypes
from robustfg.models.resizable import resize_to

pytestmark = pytest.mark.numeric


def head(classes=3, per_class=4, depth=5, **options):
    torch.manual_seed(0)
    options = {"epsilon": 1e-4, "clamped": False} | options
    return PrototypeHead(channels=6, num_classes=classes, per_class=per_class, depth=depth, **options).double()


def features(seed=0, count=2):
    return torch.randn(count, 6, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(kept=st.lists(st.booleans(), min_size=12, max_size=12), attended=st.booleans())
def test_classes_may_have_different_numbers_of_prototypes(kept, attended):
    whole = head()
    mask = torch.tensor(kept)
    mask[::4] = True  # one of every class stays
    pruned = copy.deepcopy(whole)
    pruned.keep(mask)
    attention = torch.rand(2, 1, 2, 3, dtype=torch.float64) if attended else None
    seen, before = pruned(features(), attention), whole(features(), attention)
    assert torch.allclose(seen.evidence, before.evidence[:, mask], atol=1e-12)
    assert torch.allclose(seen.logits, before.evidence[:, mask] @ whole.last_layer.weight[:, mask].t(), atol=1e-12)
    distance = (before.latent[:, None] - whole.prototypes.vectors[None, :, :, None, None]).square().sum(2)
    for k in range(3):
        own = distance[:, mask & (whole.prototypes.classes == k)].amin(1)
        assert torch.allclose(seen.class_distance[:, k], own, atol=1e-12)
    total = (seen.evidence * torch.arange(int(mask.sum()))).sum() + seen.class_distance.square().sum()
    found = torch.autograd.grad(total, [pruned.prototypes.vectors])[0]
    expected = (before.evidence[:, mask] * torch.arange(int(mask.sum()))).sum()
    for k in range(3):
        expected = expected + distance[:, mask & (whole.prototypes.classes == k)].amin(1).square().sum()
    assert torch.allclose(found, torch.autograd.grad(expected, [whole.prototypes.vectors])[0][mask], atol=1e-9)


def test_what_is_kept_keeps_its_class_image_and_box():
    module = head()
    module.prototypes.image.copy_(torch.arange(12) * 10)
    module.prototypes.box.copy_(torch.arange(48).view(12, 4))
    vectors, weight = module.prototypes.vectors, module.last_layer.weight
    mask = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]).bool()
    before = vectors.detach().clone()
    module.keep(mask)
    assert module.prototypes.classes.tolist() == [0, 1, 1, 2]
    assert module.prototypes.image.tolist() == [0, 50, 60, 110]
    assert module.prototypes.box[:, 0].tolist() == [0, 20, 24, 44]
    assert torch.equal(module.prototypes.vectors, before[mask])
    assert module.prototypes.vectors is vectors  # the optimizer's own
    assert module.last_layer.weight is weight
    assert len(module.prototypes) == module.last_layer.in_features == 4


def test_the_last_layer_begins_with_one_for_own_and_minus_a_half_for_others():
    module = head(classes=3, per_class=2)
    assert module.last_layer.weight.tolist() == [
        [1, 1, -0.5, -0.5, -0.5, -0.5], [-0.5, -0.5, 1, 1, -0.5, -0.5], [-0.5, -0.5, -0.5, -0.5, 1, 1]
    ]  # fmt: skip
    assert module.l1().item() == 6.0


def test_the_add_on_layers_begin_as_released():
    module = PrototypeHead(channels=300, num_classes=2, per_class=1, depth=200, epsilon=1e-4, clamped=False)
    for place in (0, 2):  # Kaiming, fan out: variance 2 / outputs
        assert module.add_on[place].weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.02)
        assert module.add_on[place].bias.abs().sum() == 0
    assert module(torch.randn(2, 300, 3, 3)).latent.min() > 0
    assert module(torch.randn(2, 300, 3, 3)).latent.max() < 1


def test_a_checkpoint_of_a_pruned_head_is_loaded_into_a_fresh_one():
    pruned, fresh = head(), head()
    pruned.keep(torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]).bool())
    pruned.prototypes.image += 5
    fresh.load_state_dict(pruned.state_dict())
    seen, expected = (module(features()) for module in (fresh, pruned))
    assert torch.equal(seen.logits, expected.logits)
    assert torch.equal(seen.class_distance, expected.class_distance)
    assert fresh.prototypes.image.tolist() == [4] * 4


def test_a_whole_head_is_loaded_into_a_pruned_one():
    pruned, whole = head(), head()
    pruned.keep(torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]).bool())
    pruned.load_state_dict(whole.state_dict())
    assert torch.equal(pruned(features()).logits, whole(features()).logits)


@pytest.mark.parametrize("classes", [[0, 0, 1], [0, 1, 2, 3], []])
def test_a_state_in_which_a_class_has_none_changes_no_size(classes):
    module = head()
    resize_to(module, {"prototypes.classes": torch.tensor(classes, dtype=torch.int64)})
    assert len(module.prototypes) == 12


def test_clamped_prototypes_come_back_into_the_latent_space():
    prototypes = Prototypes(num_classes=2, per_class=1, depth=3, clamped=True)
    outside = torch.tensor([[-1.0, 0.5, 2.0], [0.1, 0.2, 0.3]])
    inside = outside.clamp(0, 1)
    prototypes.vectors.data.copy_(outside)
    assert torch.equal(prototypes.eval().used(), inside)
    assert torch.equal(prototypes.vectors, outside)
    used = prototypes.train().used()
    assert torch.equal(prototypes.vectors, inside)
    assert torch.equal(torch.autograd.grad(used.sum(), prototypes.vectors)[0], torch.ones(2, 3))  # not stuck outside


def test_own_and_other_distances_are_the_smallest_of_their_classes():
    distance = torch.tensor([[3.0, 1.0, 2.0], [0.5, 4.0, 6.0]])[:, :, None, None]
    own, other = separation(distance, torch.tensor([0, 2]))
    assert own.flatten().tolist() == [3.0, 6.0]
    assert other.flatten().tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("per_class", 0, "prototypes_per_class"), ("depth", 0, "prototype_depth"), ("epsilon", 0.0, "similarity_epsilon")],
)
def test_impossible_options_are_refused_by_name(option, value, name):
    with pytest.raises(UserError, match=f"loss.{name} must be"):
        head(**{option: value})
