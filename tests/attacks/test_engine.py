import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from test_folding import Plain, images
from test_gradient import INDEX, LABEL, Net, pgd
from test_gradient import images as float64_images
from torch import nn

from robustfg.attacks import (
    APGD,
    FAB,
    Cascade,
    DeepFool,
    Engine,
    GradientAttack,
    Linf,
    Square,
    WrongAndNear,
)
from robustfg.attacks.runtime.cuda_graphs import pays
from robustfg.core.errors import UserError

FIXED = Engine(fixed_batch=8)


def attack(engine, **options):
    return pgd(epsilon="2/255", steps=6, engine=engine, random_start=True, restarts=2, **options)


def labelled(count=33):
    model, image = Plain().centred(), images(count)
    return model, image, model(image).argmax(1), torch.arange(count) * 7 + 3


@pytest.mark.parametrize("last_iterate", [False, True])
@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_with_a_fixed_batch_perturbations_are_bit_equal_for_every_batch_size_and_order(size, last_iterate):
    model, image, label, index = labelled()
    fixed = attack(FIXED, last_iterate=last_iterate)
    together = fixed(model, image, label, index)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    pieces = [fixed(model, image[part], label[part], index[part]) for part in order.split(size)]
    assert torch.equal(torch.cat(pieces), together[order])


def test_the_model_sees_exactly_the_fixed_number_of_images_and_the_counts_are_those_of_the_samples():
    model, image, label, index = labelled(5)
    sizes = []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    attempts = list(attack(Engine(fixed_batch=8, fold=False)).attempts(model, image, label, index))
    assert set(sizes) == {8}
    plain = list(attack(Engine(fold=False)).attempts(model, image, label, index))
    for fixed, free in zip(attempts, plain, strict=True):
        assert fixed.forwards.tolist() == free.forwards.tolist()
        assert fixed.backwards.tolist() == free.backwards.tolist()


def test_half_precision_is_for_the_search_only_and_finds_nearly_as_much():
    model, image, label, index = labelled()
    counts = []
    for autocast in (None, "bfloat16"):
        found = attack(Engine(autocast=autocast))(model, image, label, index)
        assert found.dtype == torch.float32
        counts.append(int((model(found).argmax(1) != label).sum()))
    assert counts[0] > 0
    assert counts[1] >= counts[0] - 2


class Noisy(nn.Module):
    """Adds noise drawn from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.inner = Net()

    def forward(self, image):
        return self.inner(image + 0.5 * torch.randn_like(image))


def test_averaging_over_a_models_randomness_costs_that_many_passes_and_leaves_the_generator_alone():
    model, clean = Noisy(), float64_images()
    before = torch.get_rng_state()
    averaged = pgd(steps=3, engine=Engine(samples=4), last_iterate=True)
    first = next(averaged.attempts(model, clean, LABEL, INDEX))
    torch.rand(3)
    again = next(averaged.attempts(model, clean, LABEL, INDEX))
    assert first.forwards.tolist() == first.backwards.tolist() == [12] * 6
    assert torch.equal(first.image, again.image)
    torch.set_rng_state(before)
    next(averaged.attempts(model, clean, LABEL, INDEX))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_averaged_gradient_is_nearer_to_that_without_noise():
    model, clean = Noisy(), float64_images()
    exact = pgd(steps=1, last_iterate=True)(model.inner, clean, LABEL, INDEX)
    agreement = [
        float((pgd(steps=1, last_iterate=True, engine=Engine(samples=n))(model, clean, LABEL, INDEX) == exact)
              .double().mean())
        for n in (1, 64)
    ]  # fmt: skip
    assert agreement[1] > agreement[0] + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_batch": 0}, "engine.fixed_batch must be >= 1 or null, got 0"),
        ({"compile": True}, "engine.compile needs engine.fixed_batch"),
        (
            {"compile": "fast", "fixed_batch": 8},
            "engine.compile must be auto, false, true or one of cudagraphs, de",
        ),
        ({"compile": "default"}, "engine.compile needs engine.fixed_batch"),
        ({"samples": 0}, "engine.samples must be >= 1, got 0"),
        ({"autocast": "int8"}, "engine.autocast must be null, bfloat16 or float16, got int8"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        Engine(**options)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_search_breaks_whom_an_eager_one_breaks():
    model, image, label, index = labelled(12)
    eager, compiled = (
        next(pgd(epsilon="2/255", steps=10, engine=engine).attempts(model, image, label, index))
        for engine in (FIXED, replace(FIXED, compile="reduce-overhead"))
    )
    assert 0 < (eager.margin < 0).sum() < 12
    assert torch.equal(eager.margin < 0, compiled.margin < 0)
    assert torch.equal(eager.margin < 0, model(compiled.image).argmax(1) != label)


class Replayed:
    """What a CUDA graph does: every answer is written where the last one lies, and every gradient."""

    def __init__(self, model, **options):
        self.model, self.options, self.answer, self.gradient = model, options, [], []

    def __call__(self, image):
        return Kept.apply(self.model(Kept.apply(image, None, self.gradient)), self.answer, None)


class Kept(torch.autograd.Function):
    """Writes what passes forwards, or back, over what passed before."""

    @staticmethod
    def forward(ctx, value, forwards, backwards):
        ctx.place = backwards
        return over(value, forwards)

    @staticmethod
    def backward(ctx, gradient):
        return over(gradient, ctx.place), None, None


def over(value, place):
    if place is None:
        return value.view_as(value)
    if not place:
        place.append(torch.empty_like(value))
    return place[0].copy_(value).view_as(value)


@pytest.mark.parametrize(("samples", "mode"), [(1, True), (2, "reduce-overhead")])
@pytest.mark.parametrize("kind", [GradientAttack, APGD, Square])
def test_answers_written_over_by_the_next_replay_of_a_graph_have_been_copied(kind, mode, samples, monkeypatch):
    model, image, label, index = labelled(13)
    engines = [Engine(fixed_batch=8, samples=samples, compile=compile_, fold=False) for compile_ in (False, mode)]
    asked = []
    monkeypatch.setattr(torch, "compile", lambda *a, **options: asked.append(Replayed(*a, **options)) or asked[-1])
    budget = {"queries": 15} if kind is Square else {"steps": 4}
    attacks = [kind(threat=Linf(epsilon="3/255"), engine=engine, **budget) for engine in engines]
    eager, replayed = (next(attack.attempts(model, image, label, index)) for attack in attacks)
    assert torch.equal(eager.image, replayed.image)
    assert torch.equal(eager.margin, replayed.margin)
    assert asked[0].options == {"dynamic": False, "mode": None if mode is True else mode}


def test_a_model_that_returns_probabilities_is_told_and_attacked_all_the_same():
    model, clean = Net(), float64_images()
    label = model(clean).argmax(1)
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        found = pgd(steps=5)(lambda image: model(image).softmax(1), clean, label, INDEX)
    assert (model(found).argmax(1) != label).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(steps=5)(model, clean, label, INDEX)


def test_a_description_tells_engines_apart_where_they_change_results():
    threat = Linf(epsilon=0.1)
    for kind in (APGD, DeepFool, FAB, GradientAttack, Square):
        plain, averaged = kind(threat=threat), kind(threat=threat, engine=Engine(samples=5))
        other = kind(threat=threat, decision=WrongAndNear(tau=1.0))
        assert other.settings()["decision"]["tau"] == 1.0
        told = {json.dumps(attack.settings()) for attack in (plain, averaged, other)}
        assert len(told) == 3, kind
        assert "samples" in json.dumps(Cascade(attacks={"a": averaged}).settings())


def test_nothing_is_recorded_on_the_cpu():
    model, image, label, index = labelled(12)
    found = [attack(replace(FIXED, compile=compile_))(model, image, label, index) for compile_ in (False, "cudagraphs")]
    assert torch.equal(*found)


def test_graphs_are_for_small_batches_of_plain_modules_that_are_not_in_training():
    model, small = Plain().eval(), torch.rand(2, 3, 64, 64)
    assert pays(model, small)
    assert not pays(model, small[:1].expand(1024, -1, -1, -1))
    assert not pays(nn.Sequential(torch.fx.symbolic_trace(model)), small)
    for engine, training, chosen in (
        (Engine(), False, True),
        (Engine(), True, False),
        (Engine(fold=False), False, False),
        (Engine(compile=False), False, False),
        (Engine(compile="cudagraphs"), True, True),
    ):
        with engine.running(model.train(training), small) as run:
            assert run._graphs is chosen, engine
