import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustfg.checkpoint import PARTS, Checkpoint
from robustfg.core.errors import UserError
from robustfg.losses import MaximalSeparation

pytestmark = pytest.mark.numeric

LABEL = torch.tensor([0, 3, 2, 2, 1])
OPTIONS = [
    {},
    {"head": "attention"},
    {"attention_epsilon": 0.0, "true_class_attention": False},
    {"attention_epsilon": 0.5},
    {"attention_over_batch": True},
    {"true_class_attention": False},
    {"detach_attention": False},
    {"true_class_attention": False, "detach_attention": False},
    {"attention_over_batch": True, "true_class_attention": False, "detach_attention": False},
    {"dropout_in_maps": True},
    {"similarity_epsilon": 1e-5},
    {"clamp_prototypes": False},
    {"attention": 0.5, "cluster": 2.0, "separation": 3.0, "l1": 0.1},
    {"cluster": 0.0, "separation": 0.0},
]


def maxsep(**options):
    torch.manual_seed(0)
    module = MaximalSeparation(
        channels=6, num_classes=4, **({"prototypes_per_class": 3, "prototype_depth": 5} | options)
    ).double()
    module.prototype.prototypes.vectors.data.mul_(2).sub_(0.5)  # some of them out of [0, 1]
    return module


def features(seed=0):
    return torch.randn(5, 6, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def naive(module, feature_map, options):
    """The formulas of the paper and of every option, sample by sample and class by class."""
    get = {"attention_epsilon": 1e-6, "similarity_epsilon": 1e-4, "dropout": 0.8} | options
    head, relu = module.prototype, feature_map.relu()
    agnostic = F.conv2d(relu, module.attention.agnostic.weight, module.attention.agnostic.bias)
    weights = module.attention.specific.weight, module.attention.specific.bias
    shown = relu
    if module.training:
        torch.manual_seed(7)
        shown = F.dropout(relu, get["dropout"])
    hidden = agnostic * F.conv2d(shown, *weights)
    products = hidden if get.get("dropout_in_maps") else agnostic * F.conv2d(relu, *weights)

    def over_maximum(map_):
        return map_.relu() / map_.relu().max().clamp_min(get["attention_epsilon"])

    own_maps = torch.stack([over_maximum(product.max(0).values) for product in products])
    latent = head.add_on(feature_map)
    vectors = head.prototypes.vectors
    if get.get("clamp_prototypes", True):
        vectors = vectors + (vectors.clamp(0, 1) - vectors).detach()
    distance = (latent[:, None] - vectors[None, :, :, None, None]).square().sum(2)
    similarity = ((distance + 1) / (distance + get["similarity_epsilon"])).log()
    evidence = (own_maps[:, None] * similarity).flatten(2).max(2).values
    classes = torch.arange(12) // 3
    own = torch.stack([d[classes == k].min(0).values for d, k in zip(distance, LABEL, strict=True)])
    other = torch.stack([d[classes != k].min(0).values for d, k in zip(distance, LABEL, strict=True)])
    weight = own_maps
    if get.get("true_class_attention", True):
        weight = torch.stack([over_maximum(product[k]) for product, k in zip(products, LABEL, strict=True)])
    if get.get("attention_over_batch"):
        weight = weight.mean(0).expand_as(own)
    if get.get("detach_attention", True):
        weight = weight.detach()
    off = head.last_layer.weight[torch.arange(4)[:, None] != classes]
    logits = {"attention": hidden.mean((2, 3)), "prototype": evidence @ head.last_layer.weight.t()}
    terms = {
        "classification": F.cross_entropy(logits["prototype"], LABEL),
        "attention": F.cross_entropy(logits["attention"], LABEL),
        "cluster": (weight * own).mean(),
        "separation": (weight * other).mean(),
        "l1": off.abs().sum(),
    }
    coefficients = {"attention": 1.0, "cluster": 100.0, "separation": 0.08, "l1": 1e-4} | {
        name: value for name, value in options.items() if name in terms
    }
    total = terms["classification"] - coefficients.pop("separation") * terms["separation"]
    total = total + sum(value * terms[name] for name, value in coefficients.items())
    return {"loss": total, **terms}, logits[get.get("head", "prototype")]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_terms_and_gradients_equal_the_formulas_under_every_option(options, training):
    module = maxsep(**options).train(training)
    if training and options.get("clamp_prototypes", True):
        module.prototype.prototypes.used()  # brings them back into [0, 1]
    ours, theirs = (features().requires_grad_() for _ in range(2))
    torch.manual_seed(7)
    output = module(ours)
    terms = module.loss(output, LABEL)
    expected, logits = naive(module, theirs, options)
    assert torch.allclose(output.logits, logits, rtol=0, atol=1e-10)
    for name, term in expected.items():
        assert terms[name].item() == pytest.approx(term.item(), abs=1e-10), name
    names, parameters = zip(*module.named_parameters(), strict=True)
    vectors = module.prototype.prototypes.vectors
    inside = (vectors >= 0) & (vectors <= 1)
    for name, mine, value in zip(
        ("features", *names),
        torch.autograd.grad(terms["loss"], [ours, *parameters], materialize_grads=True, allow_unused=True),
        torch.autograd.grad(expected["loss"], [theirs, *parameters], materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        if name.endswith("vectors") and options.get("clamp_prototypes", True):
            mine, value = mine[inside], value[inside]
        assert torch.allclose(mine, value, rtol=1e-8, atol=1e-9), name


def test_either_head_may_decide():
    for head in ("attention", "prototype"):
        output = maxsep(head=head).eval()(features())
        assert output.logits is output.heads[head]
    assert not torch.equal(output.heads["attention"], output.heads["prototype"])


def test_maps_and_heads_have_the_shapes_that_others_rely_on():
    output = maxsep()(features())
    assert {name: tuple(value.shape) for name, value in output.heads.items()} == {
        "attention": (5, 4), "prototype": (5, 4),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in output.maps.items()} == {
        "attention": (5, 1, 3, 2), "class_attention": (5, 4, 3, 2), "class_distance": (5, 4, 3, 2),
    }  # fmt: skip
    assert output.embedding.shape == (5, 5)


def without_attention(module):
    """Every product of the attention maps becomes negative."""
    module.attention.agnostic.bias.data.fill_(1.0)
    module.attention.agnostic.weight.data.zero_()
    module.attention.specific.bias.data.fill_(-1.0)
    module.attention.specific.weight.data.zero_()
    return module


def test_a_dead_map_is_counted_and_harms_nothing():
    module = without_attention(maxsep())
    terms = module.loss(module(features()), LABEL)
    assert terms["dead_maps"].item() == 1.0
    assert all(term.isfinite() for term in terms.values())
    terms["loss"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in module.parameters())
    assert maxsep().loss(maxsep()(features()), LABEL)["dead_maps"].item() < 1.0


@pytest.mark.parametrize(("options", "dead"), [({}, 0.4), ({"attention_over_batch": True}, 0.4),
                                               ({"true_class_attention": False}, 0.0)])  # fmt: skip
def test_the_maps_that_weigh_the_distances_are_counted_where_they_are_dead(options, dead):
    """Class 2, of two of the five samples, is seen nowhere; the others everywhere."""
    module = without_attention(maxsep(**options))
    module.attention.specific.bias.data = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    terms = module.loss(module(features()), LABEL)
    assert terms["dead_maps"].item() == 0.0
    assert terms["dead_weighing_maps"].item() == pytest.approx(dead)


def test_a_dead_map_as_released_is_no_number_while_the_attention_logits_are():
    module = without_attention(maxsep(attention_epsilon=0.0))
    output = module(features())
    terms = module.loss(output, LABEL)
    assert output.heads["attention"].isfinite().all()
    assert terms["loss"].isnan()
    assert terms["dead_maps"].item() == 1.0


def test_a_prediction_does_not_depend_on_its_neighbours():
    module = maxsep(attention_over_batch=True).eval()
    together = module(features())
    alone = module(features()[2:3])
    assert torch.allclose(together.logits[2:3], alone.logits, rtol=0, atol=1e-12)


def test_phases_find_every_parameter_once_and_every_weight():
    module = maxsep()
    groups = module.groups()
    assert sorted(groups) == ["add_on", "attention", "last_layer", "prototypes"]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, module.parameters()))
    assert module.coefficients == {"attention": 1.0, "cluster": 100.0, "separation": 0.08, "l1": 1e-4}
    module.coefficients = dict.fromkeys(module.coefficients, 0.0)
    terms = module.loss(module(features()), LABEL)
    assert terms["loss"].item() == terms["classification"].item()


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = maxsep()


def test_a_checkpoint_of_pruned_prototypes_is_read(tmp_path):
    pruned, fresh = Classifier().eval(), Classifier().eval()
    kept = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0]).bool()
    pruned.loss.prototype.keep(kept)
    content = {"state_dict": pruned.state_dict(), "robustfg": {"config": dict.fromkeys(PARTS), "classes": list("abcd")}}
    torch.save(content, tmp_path / "c.ckpt")
    Checkpoint.read(tmp_path / "c.ckpt").load_into(fresh)
    assert torch.equal(fresh.loss(features()).logits, pruned.loss(features()).logits)


def test_a_checkpoint_of_other_classes_is_still_refused(tmp_path):
    other = Classifier()
    other.loss = MaximalSeparation(channels=6, num_classes=3, prototypes_per_class=3, prototype_depth=5).double()
    content = {"state_dict": other.state_dict(), "robustfg": {"config": dict.fromkeys(PARTS), "classes": list("abc")}}
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match="belongs to another architecture"):
        Checkpoint.read(tmp_path / "c.ckpt").load_into(Classifier())


@pytest.mark.parametrize(
    ("option", "value"),
    [("attention", -1.0), ("cluster", -1.0), ("separation", -0.1), ("l1", -1.0), ("attention_epsilon", -1.0),
     ("dropout", 1.0), ("head", "both"), ("prototypes_per_class", 0), ("prototype_depth", 0),
     ("similarity_epsilon", 0.0)],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=f"loss.{option} must be"):
        maxsep(**{option: value})


def test_there_is_no_other_survey():
    with pytest.raises(UserError, match="no survey named 'pull'"):
        maxsep().survey("pull")
