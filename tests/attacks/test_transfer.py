import pytest
import torch
from test_gradient import INDEX, Log, Net, images, margins, named_images, pgd

from robustfg.attacks import CrossEntropy, Linf, Transfer
from robustfg.errors import UserError


def transfer(surrogate, **options):
    attack = pgd(epsilon=0.3, steps=6, last_iterate=True, objective=CrossEntropy(), **options)
    return Transfer(name="t", attack=attack, surrogate=surrogate, surrogate_name="twin")


def noisy_twin(model):
    twin = Net()
    twin.load_state_dict({k: v + 0.05 * torch.randn_like(v) for k, v in model.state_dict().items()})
    return twin


def test_what_is_crafted_on_a_surrogate_is_handed_to_the_model():
    model, clean = Net(), images()
    label, twin = model(clean).argmax(1), noisy_twin(Net())
    (attempt,) = transfer(twin).attempts(model, clean, label, INDEX)
    crafted = pgd(epsilon=0.3, steps=6, last_iterate=True, objective=CrossEntropy(), name="t")(
        twin, clean, label, INDEX
    )
    assert torch.equal(attempt.image, crafted)
    assert torch.allclose(attempt.margin, margins(model, crafted, label), rtol=0, atol=1e-12)
    assert (attempt.margin < 0).any()
    assert attempt.forwards.tolist() == [1] * 6
    assert attempt.backwards.tolist() == [0] * 6
    assert ((attempt.first_success == 0) == (attempt.margin < 0)).all()


def test_the_attacked_model_is_asked_once_and_never_differentiated():
    log, clean = named_images()
    list(transfer(noisy_surrogate(log)).attempts(log, clean, torch.zeros(6, dtype=torch.int64), INDEX))
    assert set(log.forwards.values()) == {1}
    assert not log.backwards


def noisy_surrogate(log):
    twin = Log()
    twin.load_state_dict(log.state_dict())
    twin.model.bias = log.model.bias
    return twin


def test_a_later_round_crafts_only_for_what_stands():
    model, clean = Net(), images()
    label, twin = model(clean).argmax(1), noisy_twin(Net())
    first, second = transfer(twin, restarts=2, random_start=True).attempts(model, clean, label, INDEX)
    assert torch.equal(second.forwards == 0, first.margin < 0)
    assert torch.equal(second.image[first.margin < 0], first.image[first.margin < 0])


def test_the_radius_reaches_the_attack_inside():
    smaller = transfer(Net()).within(Linf(epsilon=0.1))
    assert smaller.threat.radius == smaller.attack.threat.radius == 0.1


def test_the_description_names_the_surrogate():
    assert transfer(Net()).describe()["surrogate"] == "twin"


@pytest.mark.parametrize("option", [{"seed": 1}, {"restarts": 3}])
def test_seed_and_restarts_are_those_of_its_attack(option):
    with pytest.raises(UserError, match=f"{next(iter(option))} is that of its attack; set attack.{next(iter(option))}"):
        Transfer(attack=pgd(), surrogate=Net(), surrogate_name="twin", **option)
    inner = pgd(**option, random_start=True, last_iterate=True)
    attempts = list(
        Transfer(attack=inner, surrogate=Net(), surrogate_name="t").attempts(
            Net(), images(), images().long()[:, 0, 0, 0], INDEX
        )
    )
    assert len(attempts) == option.get("restarts", 1)
