"""What every regime must stand: several processes, accumulated gradients, mixed precision, interruptions."""

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from small_classifiers import StoppedAt, classifier, data, fitted, regimes, results, trainer
from two_ranks import found_by_two

NAMES = list(regimes())
HALVES = ("ccat", "mcat")
"""They attack the second half of what one process sees at once, so that other batches are other training."""


def close(first, second):
    return [name for name in first if not torch.allclose(first[name], second[name], rtol=1e-7, atol=1e-9)]


def test_regimes_differ_from_one_another():
    weights = {name: fitted(regime).backbone.layers[0].weight for name, regime in regimes().items()}
    for first in NAMES:
        assert all(first == other or not torch.allclose(weights[first], weights[other]) for other in NAMES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_two("ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.process
@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_hold_the_same_weights_and_those_of_one(ranks, name):
    one, (first, second) = results(regimes(ramp_epochs=0.5)[name], 8), (found[name] for found in ranks)
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert name in HALVES or close(one["weights"], first["weights"]) == []
    for slot, noise in one["noise"].items():
        for rank, part in enumerate((first, second)):
            assert torch.allclose(noise[rank::2], part["noise"][slot])


@pytest.mark.process
@pytest.mark.xdist_group("ranks")
def test_two_processes_judge_overfitting_alike(ranks):
    one = results(regimes(ramp_epochs=0.5)["fast"], 8)["checks"]
    assert len(one) == 2
    assert all(found["fast"]["checks"] == one for found in ranks)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "awp" not in name and name not in HALVES]
)  # moves weights for every part anew
def test_accumulated_gradients_equal_a_larger_batch(name):
    """Not for awp, which moves the weights for every part anew."""
    whole = fitted(regimes()[name], 8, loss_ramp=0)
    parts = fitted(regimes()[name], 4, loss_ramp=0, accumulate_grad_batches=2, limit_train_batches=12)
    assert close(whole.state_dict(), parts.state_dict()) == []


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_accumulation_and_clipping_work_together(name):
    start = classifier(None).state_dict()
    model = fitted(
        regimes(ramp_epochs=1)[name], 4, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.5
    )
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        kept = name == "mcat" and key == "loss.means"  # frozen where there is no first stage
        assert torch.equal(value, start[key]) == kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [4, 9])
def test_training_stopped_in_the_middle_of_an_epoch_continues_to_the_same_weights(name, stop, tmp_path):
    exact = {"precision": "32-true"}  # Lightning reads a checkpoint into float32 before it makes the model double
    whole = fitted(regimes(clean_epochs=0.2, ramp_epochs=1)[name], **exact)
    keep = StoppedAt(tmp_path / "last.ckpt", stop)
    with pytest.raises(SIGTERMException):
        trainer(callbacks=[keep], **exact).fit(classifier(regimes(clean_epochs=0.2, ramp_epochs=1)[name]), data())
    torch.manual_seed(99)
    resumed = classifier(regimes(clean_epochs=0.2, ramp_epochs=1)[name])
    loop = trainer(**exact)
    loop.fit(resumed, data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert loop.global_step == 12
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_guard_goes_on_with_what_it_remembers(tmp_path):
    watched = regimes()["fast"].guard
    watched.is_good(0.5, 0.25)
    watched.weights, watched.triggered = [{"w": torch.ones(2)}], True
    torch.save(watched.state_dict(), tmp_path / "guard.pt")
    other = regimes()["fast"].guard
    other.load_state_dict(torch.load(tmp_path / "guard.pt", weights_only=True))
    assert (other.good, other.triggered) == ([(0.5, 0.25)], True)
    assert torch.equal(other.weights[0]["w"], torch.ones(2))


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_a_gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_trains_to_the_weights_of_the_cpu(name):
    here, there = (fitted(regimes()[name], accelerator=kind, devices=1).state_dict() for kind in ("cpu", "gpu"))
    assert close(here, {key: value.cpu() for key, value in there.items()}) == []


@needs_a_gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_on_a_gpu_moves_all_weights_and_keeps_them_finite(name, precision):
    start = classifier(None).state_dict()
    model = fitted(regimes(ramp_epochs=1)[name], 4, accelerator="gpu", devices=1, precision=precision)
    for key, value in model.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value.cpu(), start[key])
