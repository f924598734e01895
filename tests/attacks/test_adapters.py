"""Attacks of other libraries through our adapters: ours against theirs, and each of their traps."""

import importlib
import importlib.util
import json
import random
import sys
import warnings
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
import toy
from hydra import compose, initialize_config_dir
from torch import nn

import robustfg
from robustfg.attacks import L1, L2, CrossEntropy, Engine, GradientAttack, Linf, Margin, Steepest
from robustfg.attacks.adapters import ART, AdvLib, Foolbox, PyAutoAttack
from robustfg.attacks.adapters.base import kept_state
from robustfg.attacks.adapters.hidden_model import Witness
from robustfg.attacks.batch.active_batch import ActiveBatch
from robustfg.attacks.batch.task import Task
from robustfg.attacks.rng.streams import Draws
from robustfg.attacks.runtime.engine import Run
from robustfg.classifier import Classifier
from robustfg.cli.config import CONF, build, plain, register_schemas
from robustfg.core.errors import UserError
from robustfg.losses import Softmax

fb = pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")
pytest.importorskip("art")
pytestmark = pytest.mark.filterwarnings("ignore:images of .* lie outside")
ADVLIB = pytest.mark.skipif(importlib.util.find_spec("adv_lib") is None, reason="adv-lib is not installed")
SIZE, COUNT = 8, 12
EPSILON = 6 / 255


def smooth(classes=5, dtype=torch.float64):
    """A small smooth convolutional net with spread-out logits."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.Softplus(beta=5), nn.Conv2d(6, 8, 3, 1, 1), nn.Softplus(beta=5), nn.Flatten(),
        nn.Linear(8 * 16, classes),
    ).to(dtype)  # fmt: skip
    net[-1].weight.data *= 6
    net[-1].bias.data -= net(images(64).to(dtype)).detach().mean(0)
    return net


def normed():
    """A net with batch norm and dropout in train mode: what a library must not touch."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(96, 5)
    )
    net(images(64))  # moves the statistics from their start
    return net


def images(count=COUNT):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def predicted(net, image):
    modes = [module.training for module in net.modules()]
    with torch.no_grad():
        label = net.eval()(image).argmax(1)
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return label


def linf(epsilon=EPSILON):
    return Linf(epsilon=epsilon)


def only(attack, net, image=None, label=None):
    image = images() if image is None else image
    (attempt,) = attack.attempts(net, image, predicted(net, image) if label is None else label)
    return attempt


def foolbox_pgd(threat=None, **options):
    threat = threat or linf()
    name = {"linf": "LinfPGD", "l2": "L2PGD"}[threat.norm]
    return Foolbox(threat=threat, attack=name, options={"steps": 5, "abs_stepsize": "eps/4", **options})


def autoattack(threat=None):
    options = {"square": {"n_queries": 20}, "apgd": {"n_iter": 5}, "apgd_targeted": {"n_iter": 3}, "fab": {"n_iter": 3}}
    return PyAutoAttack(threat=threat or linf(), options=options)


CASES = {
    "foolbox PGD": lambda: foolbox_pgd(random_start=True),
    "foolbox CW": lambda: Foolbox(
        threat=L2(epsilon=0.5), attack="L2CarliniWagnerAttack", options={"binary_search_steps": 2, "steps": 5}
    ),
    "foolbox HSJ": lambda: Foolbox(threat=L2(epsilon=0.5), attack="HopSkipJumpAttack", options={"steps": 1}),
    "pyautoattack": autoattack,
    "ART PGD": lambda: ART(
        threat=linf(), attack="ProjectedGradientDescent",
        options={"max_iter": 5, "eps_step": "eps/4", "num_random_init": 1},
    ),
    "ART APGD": lambda: ART(
        threat=linf(), attack="AutoProjectedGradientDescent",
        options={"max_iter": 3, "eps_step": "eps", "nb_random_init": 1},
    ),
    "ART Square": lambda: ART(threat=linf(), attack="SquareAttack", options={"max_iter": 5}),
    "ART CW": lambda: ART(
        threat=L2(epsilon=0.5), attack="CarliniL2Method", options={"max_iter": 2, "binary_search_steps": 2}
    ),
    "adv-lib APGD": lambda: AdvLib(threat=linf(), attack="apgd", options={"n_iter": 5}),
    "adv-lib PGD": lambda: AdvLib(threat=linf(), attack="pgd_linf", options={"steps": 5}),
    "adv-lib FAB": lambda: AdvLib(threat=L2(epsilon=0.5), attack="fab", options={"n_iter": 3}),
}  # fmt: skip
EVERY = pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=ADVLIB if "adv" in name else ()) for name, make in CASES.items()]
)


# --- Ours against theirs


def ours(threat, steps, random_start=False):
    return GradientAttack(
        threat=threat, step=Steepest(size="eps/4"), steps=steps, objective=CrossEntropy(), last_iterate=True,
        random_start=random_start, engine=Engine(fold=False),
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("threat", [linf(), linf(0.3), L2(epsilon=0.4), L2(epsilon=3)], ids=str)
def test_our_pgd_follows_foolboxs_from_the_clean_image(threat, steps):
    net, image = smooth(), images().double()
    theirs = only(foolbox_pgd(threat, steps=steps, random_start=False), net, image).image
    mine = only(ours(threat, steps), net, image).image
    assert (mine - theirs).abs().max() < 1e-6
    assert (mine - image).abs().max() > 0.2 * threat.radius / (1 if threat.norm == "linf" else 20)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("threat", [linf(), L2(epsilon=0.4)], ids=str)
def test_our_pgd_follows_foolboxs_from_the_same_random_start(threat, steps, monkeypatch):
    net, image, mine = smooth(), images().double(), ours(threat, steps, random_start=True)
    noise = threat.uniform(image, torch.arange(COUNT), 0, "attack", 0, 0)  # seed, name, draw, restart
    start = threat.project(image + noise, image)
    ep = pytest.importorskip("eagerpy")
    kind = getattr(fb.attacks, f"{threat.norm.title()}PGD")
    monkeypatch.setattr(kind, "get_random_start", lambda self, clean, epsilon: ep.astensor(start))
    theirs = only(foolbox_pgd(threat, steps=steps, random_start=True), net, image).image
    assert (only(mine, net, image).image - theirs).abs().max() < 1e-6


def test_our_pgd_follows_arts():
    net, image = smooth(dtype=torch.float32), images()
    options = {"max_iter": 5, "eps_step": "eps/4", "num_random_init": 0}
    theirs = only(ART(threat=linf(), attack="ProjectedGradientDescent", options=options), net, image).image
    assert (only(ours(linf(), 5), net, image).image - theirs).abs().max() < 1e-6


@ADVLIB
def test_adv_libs_pgd_is_ours_with_one_step_less():
    net, image, attack = smooth(), images().double(), CASES["adv-lib PGD"]()
    options = {"steps": 5, "random_init": False, "absolute_step_size": "eps/4"}
    found = only(replace(attack, options=options), net, image)
    mine = only(ours(linf(), 4), net, image)
    fooled_last = (net(mine.image).argmax(1) != net(image).argmax(1)) & (found.margin < 0)
    assert fooled_last.sum() >= 3
    assert (mine.image - found.image)[fooled_last].abs().max() < 1e-6


def test_what_the_adapters_hand_over_is_what_the_library_finds_alone():
    net, image = smooth(), images().double()
    label = predicted(net, image)
    alone = fb.attacks.L2DeepFoolAttack(steps=20)(
        fb.PyTorchModel(net.eval(), bounds=(0, 1)), image, fb.criteria.Misclassification(label), epsilons=None
    )[0]
    net.zero_grad(set_to_none=True)
    size = (alone - image).flatten(1).norm(dim=1)
    epsilon = float(size.median())
    threat = L2(epsilon=epsilon)
    found = only(Foolbox(threat=threat, attack="L2DeepFoolAttack", options={"steps": 20}), net, image)
    inside = size <= epsilon
    assert 0 < inside.sum() < COUNT
    assert torch.allclose(found.image[inside], alone[inside], atol=1e-12)
    assert (found.margin[inside] < 0).all()


# --- What a library leaves behind: nothing (traps 4, 5, 8, 12)


def state_of(net):
    return (
        random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), sys.gettrace(),
        [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()],
        [p.grad for p in net.parameters()], [value.tolist() for value in net.state_dict().values()],
    )  # fmt: skip


@EVERY
def test_seeds_gradients_flags_and_statistics_are_left_alone(make):
    net, image = normed(), images()
    net[1].eval()  # frozen batch norm in a model in train mode
    net[0].bias.requires_grad_(False)
    label, kept = predicted(net, image), image.clone()
    before = state_of(net)
    only(make(), net, image, label)
    assert state_of(net) == before
    assert torch.equal(image, kept)


@EVERY
def test_gradients_do_not_reach_parameters_behind_a_plain_function(make):
    net, image = normed().eval(), images()
    (attempt,) = make().attempts(lambda pixels: net(pixels), image, predicted(net, image))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert attempt.forwards.sum() > 0


class Broken(nn.Module):
    """Answers the first questions, then fails."""

    def __init__(self, net, asked=3):
        super().__init__()
        self.net, self.asked = net, asked

    def forward(self, image):
        self.asked -= 1
        if self.asked < 0:
            np.random.seed(1)
            raise KeyboardInterrupt
        return self.net(image)


@EVERY
def test_all_is_given_back_after_an_interruption_too(make):
    net, image = normed(), images()
    label = predicted(net, image)
    broken = Broken(net).train()
    before = state_of(broken)
    with pytest.raises(KeyboardInterrupt):
        list(make().attempts(broken, image, label))
    assert state_of(broken) == before


@EVERY
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_they_work_where_gradients_are_off(make, mode):
    net, image = normed(), images()
    label = predicted(net, image)
    expected = only(make(), net, image, label)
    with mode():
        found = only(make(), net, image.clone(), label.clone())
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.backwards, expected.backwards)


def test_whoever_traces_goes_on_tracing():
    lines = []

    def trace(frame, event, argument):
        lines.append(event)

    net, before = normed(), sys.gettrace()
    sys.settrace(trace)
    try:
        only(autoattack(), net)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@EVERY
def test_the_seed_of_the_attack_decides_and_the_callers_does_not(make):
    net = normed()
    np.random.seed(1), torch.manual_seed(1), random.seed(1)
    first = only(make(), net)
    np.random.seed(2), torch.manual_seed(2), random.seed(2)
    assert torch.equal(only(make(), net).image, first.image)


def test_pythons_and_numpys_generators_are_seeded_by_the_key_and_given_back():
    drawn = {}
    for seed, restart in ((0, 0), (0, 0), (1, 0), (0, 1)):
        random.seed(len(drawn)), np.random.seed(len(drawn))
        before = random.getstate(), np.random.get_state()[1].tolist()
        with kept_state(Draws(seed, "attack", 0, restart)):
            numbers = random.random(), np.random.random()
        assert drawn.setdefault((seed, restart), numbers) == numbers
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    for column in zip(*drawn.values(), strict=True):
        assert len(set(column)) == 3


@pytest.mark.parametrize("name", ["foolbox PGD", "ART PGD", "ART Square"])
def test_another_seed_or_restart_gives_other_random_starts(name):
    net, attack = normed(), CASES[name]()
    assert not torch.equal(only(replace(attack, seed=1), net).image, only(attack, net).image)
    label = predicted(net, images())
    sure = replace(attack, threat=linf(1e-4), restarts=2)
    first, second = (attempt.image for attempt in sure.attempts(net, images(), label))
    assert not torch.equal(first, second)


# --- Budgets, successes and counts (traps 13, 15, 17; foolbox's black images)


@EVERY
def test_results_stay_in_the_ball_and_claims_are_judged_again(make):
    net, image = normed(), images()
    attack, label = make(), predicted(normed(), image)
    found = only(attack, net, image, label)
    attack.threat.check(found.image, image)
    wrong = net.eval()(found.image).argmax(1) != label
    assert torch.equal(found.margin < 0, wrong)


def test_what_lies_outside_the_ball_is_told_and_projected():
    attack = Foolbox(threat=L2(epsilon=0.01), attack="L2DeepFoolAttack", options={"steps": 20})
    with pytest.warns(UserWarning, match="images of foolbox L2DeepFoolAttack lie outside l2 0.01"):
        found = only(attack, smooth(), images().double())
    assert torch.allclose(attack.threat.size(found.image - images()), torch.tensor(0.01, dtype=torch.float64))


def test_float_slack_is_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = only(CASES["ART PGD"]().within(linf(0.1)), smooth(), images().double())  # float32: 2e-8 too far
    assert (found.image - images()).abs().max() <= 0.1


def test_foolboxs_black_images_are_no_successes():
    """CW starts from zeros and calls a sample that it never fooled a success if black is of another class."""

    class Lit(nn.Module):
        """Class 0 while there is any light worth mentioning, and 100 times surer than a small step can change."""

        def forward(self, image):
            light = image.flatten(1).mean(1)
            return torch.stack([100 * (light - 0.1), torch.zeros_like(light)], 1)

    image, label = 0.5 + 0.5 * images(), torch.zeros(COUNT, dtype=torch.int64)
    options = {"binary_search_steps": 1, "steps": 2, "initial_const": 1e-6}
    subject = fb.PyTorchModel(Lit(), bounds=(0, 1))
    raw, _, success = fb.attacks.L2CarliniWagnerAttack(**options)(subject, image, label, epsilons=None)
    assert success.all()
    assert (raw == 0).all()
    attack = Foolbox(threat=L2(epsilon=0.5), attack="L2CarliniWagnerAttack", options=options)
    found = only(attack, Lit(), image, label)
    assert (found.margin > 0).all()
    assert (found.first_success == -1).all()


def test_a_sample_without_a_start_does_not_stop_foolboxs_decision_based_attacks():
    class Stubborn(nn.Module):
        """Images whose first pixel is dark are of class 0 whatever is mixed into them."""

        def forward(self, image):
            dark = image[:, 0, 0, 0] < 0.5
            score = (image[:, 1].flatten(1).mean(1) - 0.3).where(~dark, torch.ones(len(image)))
            return torch.stack([score, -score], 1)

    image, label = images().clamp(0.31, 1), torch.zeros(COUNT, dtype=torch.int64)
    image[:, 0, 0, 0] = torch.tensor([0.0, 1.0]).repeat(COUNT // 2)
    image[::2] = 0.0
    to_black = fb.attacks.LinearSearchContrastReductionAttack(target=0.0, steps=10, distance=fb.distances.l2)
    attack = Foolbox(threat=L2(epsilon=8), attack="BoundaryAttack", options={"steps": 5, "init_attack": to_black})
    found = only(attack, Stubborn(), image, label)
    assert (found.margin[::2] > 0).all()
    assert torch.equal(found.image[::2], image[::2])
    assert (found.margin[1::2] < 0).any()


@pytest.mark.parametrize("steps", [1, 5])
def test_passes_are_counted_per_sample(steps):
    """PGD asks once a step; foolbox then judges once, and we once."""
    found = only(foolbox_pgd(steps=steps), smooth(), images().double())
    assert found.forwards.tolist() == [steps + 2] * COUNT
    assert found.backwards.tolist() == [steps] * COUNT


def test_passes_of_parts_of_a_batch_are_spread_evenly_and_none_is_lost():
    net, clean = smooth(), images(4).double()
    witness = Witness(Run(Engine(fold=False), net), clean)
    for rows in (4, 3, 4, 2, 1):
        witness(clean[:rows])
    pixels = clean[:3].clone().requires_grad_()
    logits = witness(pixels)
    for column in range(2):
        torch.autograd.grad(logits[:, column].sum(), pixels, retain_graph=True)
    forwards, backwards = witness.spent()
    assert forwards.tolist() == [5, 4, 4, 4]  # 2 whole passes, and 9 images: 2 each and one left
    assert backwards.tolist() == [2, 2, 1, 1]


def test_the_witness_gives_the_models_own_answers_and_gradients():
    net, clean = smooth(), images().double()
    witness = Witness(Run(Engine(fold=False), net), clean)
    weight = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for model in (net, witness):
        pixels = clean.clone().requires_grad_()
        gradients.append(torch.autograd.grad((model(pixels) * weight).sum(), pixels)[0])
    assert torch.equal(*gradients)
    assert torch.equal(witness(clean), net(clean))
    assert witness(clean.float()).dtype == torch.float32
    assert not list(witness.parameters())


@EVERY
def test_at_epsilon_zero_the_clean_image_comes_back(make):
    net, attack = normed(), make()
    found = only(attack.within(replace(attack.threat, epsilon=0)), net)
    assert torch.equal(found.image, images())


@EVERY
def test_one_image_of_one_channel_is_enough(make):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 5))
    image = images(1)[:, :1]
    found = only(make(), net, image)
    assert found.image.shape == image.shape


# --- Few classes, bad options, missing libraries (traps 2, 10)


@pytest.mark.parametrize("classes", [2, 3])
def test_autoattack_names_the_stage_that_needs_more_classes(classes):
    with pytest.raises(UserError, match=f"apgd-t needs 4 classes, got {classes}; choose version=custom"):
        only(autoattack(), smooth(classes, torch.float32))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_aims_at_no_more_classes_than_there_are(classes):
    stages = ["apgd-ce", "fab-t", "square"] + ["apgd-t"] * (classes == 4)
    attack = PyAutoAttack(
        threat=linf(0.1), version="custom", attacks_to_run=stages, options={"square": {"n_queries": 5}}
    )
    assert (only(attack, smooth(classes, torch.float32)).margin < 0).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ART(
            threat=linf(), attack="AutoProjectedGradientDescent",
            options={"eps_step": "eps", "loss_type": "difference_logits_ratio"},
        ),
        pytest.param(lambda: AdvLib(threat=linf(), attack="apgd", options={"loss_function": "dlr"}), marks=ADVLIB),
        pytest.param(lambda: AdvLib(threat=linf(), attack="apgd_targeted"), marks=ADVLIB),
    ],
)  # fmt: skip
def test_losses_that_sort_classes_say_how_many_they_need(make):
    with pytest.raises(UserError, match=r"needs \d classes, got 2"):
        only(make(), smooth(2, torch.float32))


@ADVLIB
def test_adv_libs_one_step_pgd_is_refused():
    with pytest.raises(UserError, match="steps must be >= 2, got 1"):
        AdvLib(threat=linf(), attack="pgd_linf", options={"steps": 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Foolbox(threat=linf(), attack="LinfPDG"), "foolbox has no attack 'LinfPDG'; near: LinfPGD"),
        (lambda: Foolbox(threat=linf(), attack="Attack"), "has no attack 'Attack'"),
        (lambda: Foolbox(threat=linf(), attack="base"), "has no attack 'base'"),
        (lambda: ART(threat=linf(), attack="Deepfool"), "near: DeepFool"),
        (lambda: ART(threat=linf(), attack="importlib"), "has no attack 'importlib'"),
        (lambda: Foolbox(threat=linf(), attack="L2PGD"), "measures L2 distance, the threat model is linf"),
        (lambda: ART(threat=linf(), attack="CarliniL2Method"), "is an l2 attack, the threat model is linf"),
        (lambda: foolbox_pgd(typo=1), "has no option 'typo'; it has rel_stepsize, abs_stepsize, steps, random_start"),
        (lambda: ART(threat=linf(), attack="DeepFool", options={"typo": 1}), "has no option 'typo'"),
        (
            lambda: ART(threat=linf(), attack="FastGradientMethod", options={"eps": 0.1}),
            "options.eps is the threat model's",
        ),
        (lambda: ART(threat=linf(), attack="SquareAttack", options={"targeted": True}), "only untargeted"),
        (lambda: PyAutoAttack(threat=linf(), version="quick"), "version must be one of standard, plus, rand, custom"),
        (lambda: PyAutoAttack(threat=linf(), attacks_to_run=["fab"]), "attacks_to_run goes with version=custom"),
        (lambda: PyAutoAttack(threat=linf(), version="custom"), "attacks_to_run goes with version=custom"),
        (lambda: PyAutoAttack(threat=linf(), version="custom", attacks_to_run=["apgd"]), "near: apgd-t"),
        (lambda: PyAutoAttack(threat=linf(), options={"apgd": {"typo": 1}}), "apgd has no option 'typo'"),
        (lambda: PyAutoAttack(threat=linf(), options={"model": {}}), "options are of apgd"),
        (
            lambda: PyAutoAttack(threat=linf(), options={"square": {"eps": 0.5}}),
            "options.square.eps is the threat model's; set threat",
        ),
        (
            lambda: PyAutoAttack(threat=linf(), options={"apgd": {"norm": "L2"}}),
            "options.apgd.norm is the threat model's; set threat",
        ),
        (lambda: PyAutoAttack(threat=linf(), options={"fab": {"targeted": True}}), "options.fab.targeted is decided"),
        (lambda: PyAutoAttack(threat=linf(), options={"square": {"seed": 1}}), "options.square.seed is decided"),
        (lambda: PyAutoAttack(threat=linf(), options={"apgd": {"loss": "dlr"}}), "options.apgd.loss is decided"),
        (lambda: replace(foolbox_pgd(), engine=Engine(samples=2)), "engine.samples must be 1 for foolbox"),
    ],
)
def test_mistakes_are_told_when_the_attack_is_made(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("foolbox", Foolbox, r"pip install 'robustfg\[peers\]'"),
        ("adversarial-robustness-toolbox", ART, r"pip install 'robustfg\[peers\]'"),
        ("adv-lib", AdvLib, "pip install --no-deps adv-lib"),
    ],
)
def test_a_missing_library_is_told_with_what_to_install(name, kind, wanted, monkeypatch):
    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=f"{name} is not installed: {wanted}"):
        kind(threat=linf(), attack="x")


def test_an_error_of_the_library_keeps_its_kind_and_names_the_attack():
    class Odd(nn.Module):
        def forward(self, image):
            raise OverflowError("odd")

    with pytest.raises(OverflowError, match="odd") as caught:
        only(foolbox_pgd(), Odd(), label=torch.zeros(COUNT, dtype=torch.int64))
    assert caught.value.__notes__ == [f"while foolbox LinfPGD ran on {COUNT} images"]


# --- Description


@EVERY
def test_a_description_is_json_and_names_library_version_and_settings(make):
    attack = make()
    described = json.loads(json.dumps(attack.describe()))
    assert {"norm", "epsilon", "steps", "restarts", "objective", "seed"} <= set(described)
    assert described["library"] == f"{attack.package} {metadata.version(attack.package)}"
    assert described["options"] == json.loads(json.dumps(dict(attack.options)))


def test_the_length_is_the_given_one_or_the_librarys_default():
    assert foolbox_pgd(steps=7).describe()["steps"] == 7
    assert Foolbox(threat=linf(), attack="LinfPGD").describe()["steps"] == 40
    assert ART(threat=linf(), attack="SquareAttack").describe()["steps"] == 100
    assert PyAutoAttack(threat=linf()).describe()["steps"] == 5000


def test_lengths_as_text_follow_epsilon():
    net, image = smooth(), images().double()
    expected = only(foolbox_pgd(abs_stepsize=EPSILON / 4), net, image).image
    assert torch.equal(only(foolbox_pgd(abs_stepsize="eps/4"), net, image).image, expected)
    wider = foolbox_pgd(abs_stepsize="eps/4").within(linf(2 * EPSILON))
    expected = only(foolbox_pgd(linf(2 * EPSILON), abs_stepsize=EPSILON / 2), net, image).image
    assert torch.equal(only(wider, net, image).image, expected)


def test_iterations_count_in_l1_too_where_apgd_reads_another_setting():
    net, image = smooth(), images().double()
    short = only(autoattack(L1(epsilon=1e-3)), net, image)
    assert (short.margin > 0).all()
    assert short.forwards.max() < 200  # 5 restarts of APGD with 100 iterations alone would be 500


def test_lengths_in_the_parts_options_are_shares_of_the_radius():
    options = {"fab": {"alpha_max": "eps/4"}, "square": {"p_init": "1/8", "n_queries": 7}}
    attack = PyAutoAttack(threat=linf(0.2), options=options)._made(None, 0, "cpu")
    assert attack.fab.alpha_max == pytest.approx(0.05)
    assert (attack.square.p_init, attack.square.n_queries) == (0.125, 7)


def test_an_l1_threat_reaches_the_library():
    attack = PyAutoAttack(
        threat=L1(epsilon=4), version="custom", attacks_to_run=["apgd-ce"], options={"apgd": {"n_iter": 10}}
    )
    net, image = smooth(), images().double()
    found = only(attack, net, image)
    size = attack.threat.size(found.image - image)
    assert (found.margin < 0).any()
    assert (size[found.margin < 0] > 1).all()


# --- In an evaluation


def test_a_library_stands_beside_ours_in_the_summary(tmp_path):
    head = Softmax(channels=16, num_classes=toy.CLASSES)
    model = Classifier(backbone=toy.Convolutions(), loss=head, num_classes=toy.CLASSES)
    attacks = {"pgd": toy.suite()["pgd"], "theirs": replace(foolbox_pgd(Linf(epsilon="8/255")), name="theirs")}
    few = toy.data_module(max_test_samples=12)
    found = toy.evaluate(model, tmp_path, attacks, data=few, checks=0)["attacks"]
    assert found["pgd"]["library"] == f"robustfg {robustfg.__version__}"
    assert found["theirs"]["library"] == "foolbox 3.3.4"
    assert found["theirs"]["forwards"] > 0
    assert found["theirs"]["accuracy"] <= 1


OPTIONS = sorted(
    path.stem for path in (CONF / "attack").glob("*.yaml") if "robustfg.attacks.adapters" in path.read_text()
)


@pytest.mark.parametrize(
    "option", [pytest.param(option, marks=ADVLIB if "advlib" in option else ()) for option in OPTIONS]
)
def test_the_options_on_disk_name_attacks_and_settings_that_exist(option):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = plain(compose("evaluate", overrides=["run_name=r", f"attack={option}"]))["attack"]
    attack = build(node[option], option, name=option)
    assert attack.describe()["steps"] > 0
    assert (only(attack.within(replace(attack.threat, epsilon=0.3)), smooth(dtype=torch.float32)).margin < 0).any()


def test_passes_of_other_libraries_count_for_the_active_samples():
    net, image = smooth(), images(3).double()
    task = Task.of(image, predicted(net, image), None, draw=0, logits=None)
    batch = ActiveBatch(Run(Engine(fold=False), net), task, threat=linf(), decision=Margin())
    batch.evaluate(image)
    batch.select(torch.tensor([True, False, True]))
    batch.count_passes(torch.tensor([5, 7]), torch.tensor([1, 0]))
    found = batch.results()
    assert found.forwards.tolist() == [6, 1, 8]
    assert found.backwards.tolist() == [1, 0, 0]
