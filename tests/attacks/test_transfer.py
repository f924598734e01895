from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_gradient import INDEX, Log, Net, images, margins, named_images, pgd

from robustfg.attacks import Cascade, CrossEntropy, Engine, Linf, Transfer
from robustfg.attacks.composed.transfer import lent
from robustfg.core.errors import UserError

pytestmark = pytest.mark.numeric


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


def test_an_engine_reaches_the_attack_inside():
    assert transfer(Net()).run_by(Engine(samples=3)).attack.engine == Engine(samples=3)


@pytest.mark.parametrize("nested", [False, True])
def test_the_attacked_model_is_asked_as_often_as_the_engine_says(nested):
    model, clean, sizes = Net(), images(), []
    label = model(clean).argmax(1)
    attack = transfer(noisy_twin(Net()))
    if nested:
        attack = replace(attack, attack=Cascade(attacks={"first": attack.attack, "second": attack.attack}))
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    attempt = next(attack.run_by(Engine(samples=3, fixed_batch=6)).attempts(model, clean, label, INDEX))
    assert sizes == [6] * 3
    assert attempt.forwards.tolist() == [3] * 6


def test_the_description_names_the_surrogate():
    assert transfer(Net()).describe()["surrogate"] == "twin"


def test_an_attacked_model_that_returns_probabilities_is_told():
    model, clean = Net(), images()
    label, attack = model(clean).argmax(1), transfer(noisy_twin(Net()))
    with pytest.warns(UserWarning, match="the model seems to return probabilities"):
        list(attack.attempts(lambda image: model(image).softmax(1), clean, label, INDEX))


def test_the_attacked_model_is_asked_about_as_many_images_at_a_time_as_the_surrogate():
    model, clean, sizes = Net(), images(), []
    label = model(clean).argmax(1)
    attack = transfer(noisy_twin(Net()), engine=Engine(fixed_batch=4))
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    (whole,) = attack.attempts(model, clean, label, INDEX)
    (part,) = attack.attempts(model, clean[:2], label[:2], INDEX[:2])
    assert torch.equal(part.margin, whole.margin[:2])
    assert torch.equal(attack.margins(model, clean[:2], label[:2]), attack.margins(model, clean, label)[:2])
    assert sizes == [4] * 3 + [4] * 3


def test_a_random_models_answers_go_with_the_sample_where_it_is_asked_about_one_at_a_time():
    model, clean = Net(), images()
    label, attack = model(clean).argmax(1), transfer(noisy_twin(Net()), engine=Engine(fixed_batch=1))

    def noisy(image):
        return model(image) + torch.randn(len(image), 5)

    order = torch.tensor([4, 0, 5])
    (whole,) = attack.attempts(noisy, clean, label, INDEX)
    (part,) = attack.attempts(noisy, clean[order], label[order], INDEX[order])
    assert torch.equal(part.margin, whole.margin[order])
    assert torch.equal(attack.margins(noisy, part.image, label[order], INDEX[order]), part.margin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_logits_may_be_of_another_dtype_than_the_images(dtype):
    model, clean = Net(), images()
    label = model(clean).argmax(1)
    (attempt,) = transfer(noisy_twin(Net())).attempts(lambda image: model(image).to(dtype), clean, label, INDEX)
    wrong = model(attempt.image).to(dtype).argmax(1) != label
    assert torch.equal(attempt.margin < 0, wrong)
    assert wrong.any()


def test_a_random_models_margins_are_keyed_and_leave_the_callers_generator_alone():
    model, clean = Net(), images()
    label = model(clean).argmax(1)

    def noisy(image):
        return model(image) + torch.randn(len(image), 5)

    for attack in (transfer(Net()), pgd(epsilon=0.3, steps=2, restarts=2, last_iterate=True)):
        before = torch.get_rng_state()
        told = [attack.margins(noisy, clean, label) for _ in range(2)]
        attack(noisy, clean, label, INDEX)
        assert torch.equal(*told)
        assert torch.equal(torch.get_rng_state(), before)


class Elsewhere(Net):
    """Lies, by its own account, on another device."""

    def __init__(self, home="cuda"):
        super().__init__()
        self.home, self.path = torch.device(home), []

    def parameters(self, recurse=True):
        yield SimpleNamespace(device=self.home)

    def buffers(self, recurse=True):
        yield from ()

    def to(self, device):
        self.home = torch.device(device)
        self.path.append(self.home.type)
        return self


def test_a_surrogate_is_lent_to_the_images_device_and_given_back_also_after_an_error():
    surrogate = Elsewhere()
    with lent(surrogate, torch.device("cpu")):
        assert surrogate.home.type == "cpu"
    with pytest.raises(KeyboardInterrupt), lent(surrogate, torch.device("cpu")):
        raise KeyboardInterrupt
    assert surrogate.path == ["cpu", "cuda", "cpu", "cuda"]
    near = Elsewhere("cpu")
    with lent(near, torch.device("cpu")):
        pass
    assert near.path == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_surrogate_stays_where_the_caller_had_it():
    model, clean = Net().cuda(), images().cuda()
    surrogate = noisy_twin(Net())
    label = model(clean).argmax(1)
    list(transfer(surrogate).attempts(model, clean, label, INDEX.cuda()))
    assert {parameter.device.type for parameter in surrogate.parameters()} == {"cpu"}


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
