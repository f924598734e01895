import pytest
import torch
from test_config import composed

from robustfg.classifier import Classifier
from robustfg.cli.assemble import phases_of
from robustfg.cli.config import CONF, build, plain
from robustfg.cli.trust import refuse_untrusted
from robustfg.training.phases import parameter_groups

PARTS = {
    group: sorted(path.stem for path in (CONF / "loss" / group).glob("*.yaml"))
    for group in ("covariance", "priors", "initial_means")
}
RECIPES = sorted(path.stem for path in (CONF / "loss").glob("gm*.yaml"))


def made(*overrides):
    """The loss that a command line makes, and its phases."""
    node = plain(composed("train", *overrides))["loss"]
    refuse_untrusted(node)  # so that its checkpoints can be opened
    loss = build({key: value for key, value in node.items() if key != "phases"}, "loss", channels=6, num_classes=4)
    return loss, phases_of(node)


def test_there_are_parts_to_choose():
    assert PARTS["covariance"] == ["diagonal", "full", "identity", "isotropic"]
    assert PARTS["priors"] == ["given", "learned", "uniform"]
    assert {"drawn", "simplex"} <= set(PARTS["initial_means"])


@pytest.mark.parametrize(("group", "option"), [(group, name) for group, names in PARTS.items() for name in names])
def test_every_part_can_be_chosen_from_the_command_line(group, option):
    loss, _ = made("loss=gm", f"loss/{group}={option}")
    output = loss(torch.randn(5, 6, 2, 2))
    loss.loss(output, torch.tensor([0, 1, 2, 3, 0]))["loss"].backward()
    for parameter in loss.parameters():
        assert parameter.grad.isfinite().all()
    if group != "initial_means":
        assert type(getattr(loss, group)).__name__.lower() == option
    assert (CONF / "loss" / group / f"{option}.yaml").read_text().startswith("# ")


def test_parts_have_options_of_their_own():
    loss, _ = made("loss=gm", "loss/covariance=full", "loss.covariance.tied=true", "loss/priors=given",
                   "loss.priors.frequencies=[1,1,1,5]", "loss.initial_means.squared_length=50")  # fmt: skip
    assert loss.covariance.matrices().shape == (1, 6, 6)
    assert loss.priors.log().exp().tolist() == pytest.approx([0.125, 0.125, 0.125, 0.625])
    assert loss.means.square().sum(1).mean() > 10


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_phases_of_every_recipe_fit_its_groups(recipe):
    loss, phases = made(f"loss={recipe}")
    Classifier(backbone=torch.nn.Identity(), loss=loss, num_classes=4, phases=phases)  # would refuse
    assert loss.groups() or recipe == "gm_moving_means"


def test_the_caffe_recipes_rates_are_twice_the_learning_rate_and_the_same_decay():
    loss, phases = made("loss=gm_caffe_release")
    sgd = plain(composed("train"))["optimizer"]
    rate = phases.rate("means", sgd["lr"])(0.5) / phases.rate("backbone", sgd["lr"])(0.5)
    assert rate == pytest.approx(2)
    assert phases.phases[0].weight_decay == {"means": sgd["weight_decay"]}
    assert loss.covariance.variances.floor == 1e-4
    assert not loss.log_determinant


def test_every_parameter_is_in_one_group():
    loss, _ = made("loss=gm", "loss.embedding_dim=3", "loss/covariance=full", "loss/priors=learned")
    groups = loss.groups()
    assert list(groups) == ["head", "means", "covariances", "priors"]
    assert groups["means"][0] is loss.means
    members = [id(p) for group in parameter_groups(torch.nn.Identity(), loss).values() for p in group]
    assert sorted(members) == sorted(map(id, loss.parameters()))
