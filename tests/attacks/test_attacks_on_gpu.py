"""Attacks on a GPU: the same numbers, the same counts, and what only a GPU has."""

import copy
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from one_of_each import ATTACKS, BALL, LABEL, Embedding
from small import INDEX, Net
from small import images as float64_images
from test_folding import Plain, images
from torch import nn

from robustfg.attacks import APGD, Engine, GradientAttack, Linf, Square
from robustfg.attacks.rng.philox import keyed_integers, keyed_normals, keyed_signs, keyed_uniforms
from robustfg.attacks.runtime.cuda_graphs import _KEPT, Recorded, recorded
from robustfg.attacks.runtime.engine import GPU_PERIOD, Mode
from robustfg.attacks.runtime.folding import folded
from robustfg.core.errors import UserError
from robustfg.core.types import Output

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


@pytest.mark.parametrize("count", [1, 5, 4096])
def test_random_numbers_are_those_of_the_cpu_to_the_last_bit(count):
    index = torch.tensor([0, 5, 2**31 + 7, 2**40 + 1])
    highs = torch.tensor([[2], [3], [10], [1000]])
    for drawn in (
        lambda where: keyed_uniforms(count, index.to(where), 0, "attack", 1),
        lambda where: keyed_signs(count, index.to(where), 0, "attack", 1),
        lambda where: keyed_integers(7, count, index.to(where), 0, "attack", 1),
        lambda where: keyed_integers(highs.to(where), count, index.to(where), 0, "attack", 1),
    ):
        assert torch.equal(drawn("cpu"), drawn(GPU).cpu())
    normal = [keyed_normals(count, index.to(where), 0, "attack", 1).cpu() for where in ("cpu", GPU)]
    assert (normal[0] - normal[1]).abs().max() <= 5e-7  # cosines and logarithms are rounded by other libraries


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_finds_what_it_finds_on_the_cpu_and_gives_the_model_and_the_generators_back(attack):
    clean, found = float64_images(), {}
    for where in ("cpu", GPU):
        model = Embedding().to(where).train()
        torch.cuda.manual_seed(3)
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        *_, found[where] = attack.attempts(model, clean.to(where), LABEL.to(where), INDEX.to(where))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(torch.cuda.get_rng_state(), before[1])
        assert model.training
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    here, there = found["cpu"], found[GPU]
    assert there.image.device.type == there.margin.device.type == "cuda"
    for column in ("forwards", "backwards", "first_success", "dead_gradient"):
        assert torch.equal(getattr(here, column), getattr(there, column).cpu()), column
    assert torch.equal(here.margin < 0, there.margin.cpu() < 0)
    assert (here.image - there.image.cpu()).abs().max() < 1e-6


def labelled(count=33, pool=None):
    model = Plain()
    model[6] = pool or model[6]
    model.centred()
    image = images(count)
    label = model(image).argmax(1)
    return model.to(GPU), image.to(GPU), label.to(GPU), torch.arange(count, device=GPU) * 7 + 3


def attack(**options):
    return GradientAttack(threat=Linf(epsilon="2/255"), steps=10, **options)


def test_the_folded_copy_is_believed_under_the_tf32_of_convolutions():
    """PyTorch's own default: both sides round by 1e-3, the copy as ever."""
    model, image, *_ = labelled()
    model.eval()
    assert torch.backends.cudnn.allow_tf32
    assert folded(model, image)[1] is not None
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_who_is_fooled_in_half_precision_is_fooled_in_full(half):
    model, image, label, index = labelled()
    full, found = (
        next(attack(engine=Engine(autocast=kind)).attempts(model, image, label, index)) for kind in (None, half)
    )
    assert found.image.dtype == torch.float32
    fooled = model.eval()(found.image).argmax(1) != label
    assert torch.equal(fooled, found.margin < 0)
    assert 0 < fooled.sum() < len(label)
    assert fooled.sum() >= (full.margin < 0).sum() - 2


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("kind", [GradientAttack, APGD, Square])
@pytest.mark.parametrize("length", [1, 3, 9])
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_no_success_is_lost_by_asking_the_model_itself_later(kind, length, autocast, monkeypatch):
    model, image, label, index = labelled(128)
    budget = {"queries": 6 * length} if kind is Square else {"steps": length}
    made = kind(threat=Linf(epsilon="1/255"), engine=Engine(autocast=autocast), **budget)
    late = next(made.attempts(model, image, label, index))
    monkeypatch.setattr("robustfg.attacks.batch.active_batch.steps_between_drops", lambda device: 1)
    at_once = next(made.attempts(model, image, label, index))
    surely = late.margin.abs() > 1e-4  # TF32 rounds otherwise where the batch is another
    assert torch.equal((late.margin < 0)[surely], (model.eval()(late.image).argmax(1) != label)[surely])
    assert ((at_once.margin < 0) & ~(late.margin < 0)).sum() <= (kind is Square)


@pytest.mark.parametrize("mode", Mode.__args__[1:])
@pytest.mark.parametrize("kind", [GradientAttack, APGD, Square])
def test_a_compiled_search_breaks_whom_an_eager_one_breaks(kind, mode):
    model, image, label, index = labelled(13)
    budget = {"queries": 60} if kind is Square else {"steps": 10}
    attacks = [
        kind(threat=Linf(epsilon="1/255"), engine=Engine(fixed_batch=8, compile=compile_), **budget)
        for compile_ in (False, mode)
    ]
    eager, compiled = (next(attack.attempts(model, image, label, index)) for attack in attacks)
    assert 0 < (eager.margin < 0).sum() < 13
    assert ((eager.margin < 0) != (compiled.margin < 0)).sum() <= 1
    assert torch.equal(compiled.margin < 0, model.eval()(compiled.image).argmax(1) != label)


@pytest.mark.parametrize("half", [None, "bfloat16"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("kind", [GradientAttack, APGD, Square])
def test_a_recorded_search_finds_what_an_eager_one_finds(kind, samples, half):
    model, image, label, index = labelled(13)
    budget = {"queries": 60} if kind is Square else {"steps": 10}
    eager, recorded_ = (
        next(
            kind(
                threat=Linf(epsilon="1/255"),
                engine=Engine(fixed_batch=8, compile=compile_, samples=samples, autocast=half), **budget,
            ).attempts(model, image, label, index)
        )
        for compile_ in (False, "cudagraphs")
    )  # fmt: skip
    assert 0 < (eager.margin < 0).sum() < 13
    assert torch.equal(eager.margin < 0, recorded_.margin < 0)
    assert torch.allclose(eager.image, recorded_.image, rtol=0, atol=1e-6 if half is None else 1e-2)


class Scaled(nn.Module):
    """An attribute that no weight tells of."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = Plain().centred(), 1.0

    def forward(self, image):
        logits = self.net(image) * self.scale
        return Output(logits=logits, embedding=logits, heads={"constant": torch.ones_like(logits)})


def test_a_recording_is_kept_while_it_answers_alike_and_not_copied_with_the_model():
    model, image = Scaled().to(GPU).eval().requires_grad_(requires_grad=False), images(8).to(GPU)
    first = recorded(model, model, image, None, size=None, surely=True)
    assert isinstance(first, Recorded)
    assert recorded(model, model, image, None, size=None, surely=True) is first
    assert torch.allclose(first(image).logits, model(image).logits)
    leaf = image.clone().requires_grad_()
    slopes = [torch.autograd.grad(answer(leaf).logits[:, 0].sum(), leaf)[0].clone() for answer in (first, model)]
    assert torch.allclose(*slopes, atol=1e-6)
    model.scale = 2.0
    second = recorded(model, model, image, None, size=None, surely=True)
    assert second is not first
    assert torch.allclose(second(image).logits, model(image).logits)
    model.net[0].weight.data.mul_(1.5)  # read where it lies
    assert recorded(model, model, image, None, size=None, surely=True) is second
    assert torch.allclose(second(image).logits, model(image).logits)
    assert recorded(model, model, image[:3], None, size=None, surely=True) is not second
    twin = copy.deepcopy(model)
    assert torch.equal(twin(image).logits, model(image).logits)
    assert len(pickle.dumps(model)) < 1e5


def test_by_default_the_passes_of_a_small_batch_are_recorded_when_it_is_met_again():
    model, *samples = labelled(32)
    model.eval()
    found = []
    for recordings in (0, 1, 1):
        found.append(next(attack().attempts(model, *samples)))
        assert sum(isinstance(kept, Recorded) for kept in _KEPT[model].values()) == recordings
    assert all(torch.equal(found[0].margin < 0, later.margin < 0) for later in found[1:])


def test_a_model_that_reads_values_back_cannot_be_recorded_and_says_so():
    class Reading(nn.Module):
        def forward(self, image):
            return image.flatten(1)[:, :3] * float(image.sum())

    reading = Reading().to(GPU)
    with pytest.raises(UserError, match=r"engine.compile: no CUDA graph of this model can be recorded"):
        recorded(reading, reading, images(8).to(GPU), None, size=None, surely=True)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.rand(3, device=GPU).sum().item() > 0  # a failed recording leaves a generator that refuses to draw


@pytest.fixture
def reproducible():
    """What makes a network's own answers the same bits in every run."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("last_iterate", [False, True])
@pytest.mark.parametrize("size", [1, 7, 33])
def test_with_a_fixed_batch_perturbations_are_bit_equal_for_every_batch_size_and_order(size, last_iterate):
    model, image, label, index = labelled(pool=nn.AvgPool2d(4, 3))  # gradients of adaptive pooling add up in any order
    fixed = attack(engine=Engine(fixed_batch=8), random_start=True, restarts=2, last_iterate=last_iterate)
    together = fixed(model, image, label, index)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0)).to(GPU)
    pieces = [fixed(model, image[part], label[part], index[part]) for part in order.split(size)]
    assert torch.equal(torch.cat(pieces), together[order])


def waits(attack, model, *samples):
    """How often the host waits for the device."""
    list(attack.attempts(model, *samples))
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            list(attack.attempts(model, *samples))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in told)


@pytest.mark.parametrize(
    "made",
    [
        attack(last_iterate=True, random_start=True),
        attack(),
        APGD(threat=Linf(epsilon="1/255")),
        Square(threat=Linf(epsilon="1/255")),
    ],
    ids=["last iterate", "leaving", "apgd", "square"],
)
def test_the_host_does_not_wait_in_every_step(made):
    model, *samples = labelled()
    length = "queries" if isinstance(made, Square) else "steps"
    few, more = (waits(replace(made, **{length: steps}), model, *samples) for steps in (16, 80))
    looks = 0 if getattr(made, "last_iterate", False) else 64 / GPU_PERIOD
    assert more - few <= 3 * looks, (few, more)


def test_memory_does_not_grow_with_steps():
    model, *samples = labelled()
    held = []
    for steps in (5, 100):
        for made in (attack(last_iterate=True), attack(), APGD(threat=BALL)):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            list(replace(made, steps=steps).attempts(model, *samples))
            held.append(torch.cuda.max_memory_allocated())
    for few, many in zip(held[:3], held[3:], strict=True):
        assert many <= few * 1.001


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Net()

    def forward(self, image):
        return self.inner(image + 0.5 * torch.randn_like(image))


def test_a_models_own_random_numbers_are_keyed_and_the_callers_are_left_alone():
    model, clean = Noisy().to(GPU), float64_images().to(GPU)
    averaged = GradientAttack(threat=BALL, steps=3, engine=Engine(samples=4), last_iterate=True)
    before = torch.cuda.get_rng_state()
    first = averaged(model, clean, LABEL.to(GPU), INDEX.to(GPU))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.rand(3, device=GPU)
    assert torch.equal(first, averaged(model, clean, LABEL.to(GPU), INDEX.to(GPU)))
