import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustfg.models import evidence as module
from robustfg.models.evidence import distances_by_chunk
from robustfg.models.evidence import prototype_evidence as evidence_of_prototypes

pytestmark = pytest.mark.numeric

SIZES = st.integers(1, 4)


def toy(batch=3, depth=4, members=3, classes=5, height=2, width=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, depth, height, width), (members, classes, depth), (batch, 1, height, width))
    return [torch.rand(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def prototype_evidence(latent, bank, attention=None):
    """Prototypes class by class in a bank ``(J, K, D)``."""
    members, classes, depth = bank.shape
    table = torch.arange(members * classes).view(classes, members).t()
    evidence, distance = evidence_of_prototypes(latent, bank.transpose(0, 1).reshape(-1, depth), table, attention)
    return evidence.view(-1, classes, members).transpose(1, 2), distance


def naive(latent, bank, attention, epsilon=1e-4):
    """The formulas, on the tensor of all differences."""
    difference = latent[:, None, None] - bank[None, :, :, :, None, None]
    distance = difference.square().sum(3)  # (B, J, K, h, w)
    similarity = ((distance + 1) / (distance + epsilon)).log()
    if attention is not None:
        similarity = similarity * attention[:, None]
    return similarity.flatten(3).max(3).values, distance.min(1).values


def gradients(found, inputs):
    generator = torch.Generator().manual_seed(1)
    total = sum((value * torch.randn(value.shape, generator=generator).to(value)).sum() for value in found)
    return torch.autograd.grad(total, inputs)


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(0, 99), st.booleans(), st.sampled_from([1, 40, 2**18]),
       st.sampled_from([0.0, 0.3, 1.0]))  # fmt: skip
def test_values_and_gradients_equal_the_formulas(batch, depth, members, classes, height, seed, attended, chunk, near):
    latent, bank, attention = toy(batch, depth, members, classes, height, 2, seed)
    inputs = (latent, bank, attention) if attended else (latent, bank)
    attention = attention if attended else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.CHUNK, "cpu", chunk)
        patch.setattr(module, "NEAR", near)
        ours = prototype_evidence(latent, bank, attention)
        found = gradients(ours, inputs)
    theirs = naive(latent, bank, attention)
    for mine, value in zip((*ours, *found), (*theirs, *gradients(theirs, inputs)), strict=True):
        assert torch.allclose(mine, value, rtol=1e-8, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    latent, bank, attention = toy()
    assert torch.autograd.gradcheck(prototype_evidence, (latent, bank, attention))
    assert torch.autograd.gradcheck(prototype_evidence, (latent, bank))


@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("output", [0, 1])
def test_one_output_and_one_input_alone_have_their_gradient(asked, output):
    inputs, alone = toy(), toy()
    for place, tensor in enumerate(alone):
        tensor.requires_grad_(place == asked)
    found = prototype_evidence(*alone)[output]
    expected = torch.autograd.grad(naive(*inputs)[output].sum(), inputs[asked], allow_unused=True)[0]
    if not found.requires_grad or expected is None:
        expected = torch.zeros_like(inputs[asked])
    (gradient,) = torch.autograd.grad(found.sum(), alone[asked], allow_unused=True)
    assert torch.allclose(torch.zeros_like(expected) if gradient is None else gradient, expected)


def test_a_map_of_zeros_gives_no_evidence_and_no_gradient_to_the_latent_vectors():
    latent, bank, attention = toy()
    evidence, _ = prototype_evidence(latent, bank, torch.zeros_like(attention))
    assert torch.equal(evidence, torch.zeros_like(evidence))
    assert torch.equal(torch.autograd.grad(evidence.sum(), latent)[0], torch.zeros_like(latent))


def test_a_map_that_is_no_number_is_not_hidden():
    latent, bank, attention = toy()
    broken = attention.detach().clone()
    broken[1] = torch.nan
    evidence, _ = prototype_evidence(latent, bank, broken)
    assert evidence.isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_nothing_of_the_size_of_the_distance_maps_is_kept():
    latent, bank, attention = toy(batch=8, members=10, classes=30, height=4, width=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        prototype_evidence(latent, bank, attention)
    assert 0 < max(kept) < 8 * 300 * 16 / 10


def test_rounding_makes_no_distance_negative():
    """As after a push, when prototypes are latent vectors."""
    latent = torch.rand(4, 20, 128, generator=torch.Generator().manual_seed(0))
    for _, distances in distances_by_chunk(latent, latent.flatten(0, 1)):
        assert distances.min() >= 0


@pytest.mark.parametrize("away", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("attended", [False, True])
def test_evidence_and_gradients_are_exact_in_single_precision_where_prototypes_are_patches(away, attended):
    """As after a push and some steps, when prototypes have hardly moved from the latent vectors that they were."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.rand(3, 128, 2, 2, generator=generator)
    patches = latent.permute(2, 3, 0, 1).flatten(0, 1)
    bank = patches + away / 128**0.5 * torch.randn(patches.shape, generator=generator)
    inputs = [latent, bank, torch.rand(3, 1, 2, 2, generator=generator)][: 3 if attended else 2]
    single, double = (
        [value.clone().to(kind).requires_grad_() for value in inputs] for kind in (torch.float32, torch.float64)
    )
    (ours, _), (theirs, _) = prototype_evidence(*single), naive(*double, *[None] * (3 - len(inputs)))
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(value.sum(), given) for value, given in ((ours, single), (theirs, double)))
    for mine, value in zip(found, expected, strict=True):
        assert (mine.double() - value).norm() <= 1e-4 * value.norm()


def test_half_precision_around_does_not_reach_the_distances():
    latent, bank, attention = (tensor.detach() for tensor in toy(depth=64, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototype_evidence(latent, bank, attention)
    for mine, value in zip(found, prototype_evidence(latent, bank, attention), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, value)


def test_half_precision_around_the_backward_pass_does_not_reach_it_either():
    inputs = toy(depth=64, dtype=torch.float32)
    plain = gradients(prototype_evidence(*inputs), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(prototype_evidence(*inputs), inputs)
    assert all(torch.equal(mine, value) for mine, value in zip(found, plain, strict=True))
