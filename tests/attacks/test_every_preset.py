"""Bad and unusual input, for every attack that a user can choose by name."""

from dataclasses import replace

import pytest
import torch
from every_preset import EVERY, Tiny, images, library, nodes, predicted, preset

from robustfg.attacks import MinimumNormAttack, Spatial
from robustfg.cli.config import CONF
from robustfg.core.errors import UserError

EVERY_PRESET = pytest.mark.parametrize("name", EVERY)
NORMS = {
    "linf": lambda change: change.abs().amax((1, 2, 3)),
    "l2": lambda change: change.square().sum((1, 2, 3)).sqrt(),
    "l1": lambda change: change.abs().sum((1, 2, 3)),
    "l0": lambda change: (change != 0).any(1).sum((1, 2)),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:images of .* lie outside"),  # what adapters say of their libraries
    pytest.mark.filterwarnings("ignore:Creating a tensor from a list"),  # foolbox
]


def attacked(attack, model, image, label=None):
    """What the attack makes of the images, once it is seen to be allowed."""
    given = image.clone()
    adversarial = attack(model, image, predicted(model, image) if label is None else label)
    assert torch.equal(image, given)
    assert (adversarial.shape, adversarial.dtype) == (image.shape, image.dtype)
    assert bool(((adversarial >= 0) & (adversarial <= 1)).all())
    attack.threat.check(adversarial, image)
    if attack.threat.norm in NORMS:
        size = NORMS[attack.threat.norm](adversarial.double() - image.double())
        assert bool((size <= float(attack.threat.radius) + 1e-6).all())
    return adversarial


def test_every_option_is_among_the_presets():
    targets = {node["_target_"].split(".")[-1] for node in nodes().values()}
    assert {"APGD", "Cascade", "FeatureAttack", "Spatial", "Transfer", "UniversalPerturbation", "ART"} <= targets
    single = {path.stem for path in (CONF / "attack").glob("*.yaml")} - {"accv2020", "accv2020_fr", "gm_tpami", "quick"}
    assert single <= nodes().keys()


@EVERY_PRESET
@pytest.mark.parametrize(
    "shape", [(5, 3, 16, 16), (5, 1, 16, 16), (3, 3, 12, 20), (3, 3, 20, 12), (1, 3, 16, 16)], ids=str
)
def test_grey_images_images_that_are_not_square_and_single_ones_are_attacked_inside_the_threat(name, shape):
    attacked(preset(name, shape[1:]), Tiny(shape[1]).eval(), images(*shape))


@EVERY_PRESET
def test_an_epsilon_of_zero_gives_the_clean_image_back(name):
    attack, image = preset(name), images()
    if isinstance(attack, Spatial):
        attack = replace(attack, threat=replace(attack.threat, degrees=0, shift=0))
    elif name == "universal":
        attack = replace(attack, threat=replace(attack.threat, epsilon=0), perturbation=torch.zeros(1, 3, 16, 16))
    else:
        attack = attack.within(replace(attack.threat, epsilon=0))
    adversarial = attacked(attack, Tiny().eval(), image)
    rounding = 1e-5 if name == "spatial" else 0  # an image turned by 0 degrees is interpolated all the same
    assert float((adversarial - image).abs().max()) <= rounding


@EVERY_PRESET
def test_an_empty_batch_gives_an_empty_batch(name):
    model = Tiny().eval()
    assert attacked(preset(name), model, images(0)).shape == (0, 3, 16, 16)


@EVERY_PRESET
def test_images_that_are_wrong_already_stay_wrong(name):
    model, image = Tiny().eval(), images()
    label = (predicted(model, image) + 1) % 6
    attack = preset(name)
    adversarial = attacked(attack, model, image, label)
    if isinstance(attack, MinimumNormAttack) or name in ("bim", "bim_l2", "mim", "mim_l2", "pgd_confused"):
        assert torch.equal(adversarial, image)
    elif name not in ("lkd_l0_10", "transfer", "universal"):  # what these begin with may put a prediction right
        assert bool((predicted(model, adversarial) != label).all())


@EVERY_PRESET
def test_two_classes_are_attacked_or_the_library_that_needs_more_is_named(name):
    """DLR needs three logits and its targeted form four; with fewer ours are the margin."""
    model, image, attack = Tiny(classes=2).eval(), images(), preset(name, classes=2)
    if library(name) == "pyautoattack":
        with pytest.raises(UserError, match="pyautoattack.* needs .* classes"):
            attacked(attack, model, image)
    else:
        attacked(attack, model, image)


@EVERY_PRESET
@pytest.mark.parametrize("spoil", [lambda x: 3 * x - 1, lambda x: 255 * x, lambda x: x * torch.nan])
def test_images_outside_the_pixel_range_are_refused(name, spoil):
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\] \(normalise inside the model\)"):
        preset(name)(Tiny().eval(), spoil(images()), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    "name", [entry for entry in EVERY if entry.values != ("transfer",)]
)  # it differentiates another
def test_a_model_that_returns_probabilities_is_told(name):
    model = Tiny(change=lambda logits, image: logits.softmax(1)).eval()
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        attacked(preset(name), model, images())


@EVERY_PRESET
def test_gradients_that_are_not_numbers_spoil_no_image(name):
    def poisoned(logits, image):
        return logits + 0 * (image - image.detach()).sum((1, 2, 3)).sqrt()[:, None]  # sqrt'(0) * 0 is NaN

    model, image = Tiny(change=poisoned).eval(), images()
    leaf = image.clone().requires_grad_()
    model(leaf).logits.sum().backward()
    assert leaf.grad.isnan().all()
    assert attacked(preset(name), model, image).isfinite().all()


@EVERY_PRESET
def test_logits_far_below_zero_are_attacked_like_those_around_it(name):
    image = images(12, dtype=torch.float64)
    models = [Tiny(change=change).double().eval() for change in (None, lambda logits, image: logits - 1e4)]
    label = predicted(models[0], image)
    attack = preset(name, dtype=torch.float64)
    found = [attacked(attack, model, image, label) for model in models]
    broken = [predicted(models[0], adversarial) != label for adversarial in found]
    assert torch.equal(*broken)
