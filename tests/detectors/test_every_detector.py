import io
import pickle

import pytest
import torch
from answers import CLASSES, LEARNERS, READERS, SQUEEZERS, answer, learn, samples

from robustfg.core.errors import UserError
from robustfg.core.types import Output

EVERY = LEARNERS | READERS


@pytest.mark.parametrize("name", LEARNERS)
def test_three_uneven_shards_teach_what_one_does(name):
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    alone = learn(LEARNERS[name](), rows, label, index)
    shards = [slice(60, None), slice(0, 7), slice(7, 60)]
    three = learn(LEARNERS[name](), rows, label, index, shards)
    with_idle = learn(LEARNERS[name](), rows, label, index, [slice(0, 0), *shards])
    for other in (three, with_idle):
        torch.testing.assert_close(alone.score(answer(seen, of)), other.score(answer(seen, of)), rtol=1e-5, atol=1e-5)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_abnormal_inputs_score_higher(name):
    rows, label, index = samples(400)
    seen, of, _ = samples(100, seed=1)
    detector = EVERY[name]()
    if name in LEARNERS:
        learn(detector, rows, label, index)
        far = answer(seen + 8 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(5)), of)
    else:
        far = answer(seen, of)
        far.logits.mul_(0.1)
    near = detector.score(answer(seen, of))
    assert (detector.score(far)[:, None] > near).float().mean() > (0.55 if "lid" in name else 0.7)


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_finite_differences(name):
    rows, label, index = samples()
    seen, of, _ = samples(12, seed=1)
    detector = EVERY[name]()
    if name in LEARNERS:
        learn(detector, rows, label, index)
    detector.double()
    logits = answer(seen, of).logits.double()
    start = torch.cat([seen.double(), logits], 1).requires_grad_()

    def score(inputs):
        found = answer(inputs[:, : seen.shape[1]], of)
        return detector.score(type(found)(inputs[:, seen.shape[1] :], found.embedding, layers=found.layers))

    torch.autograd.gradcheck(score, start, eps=1e-6, atol=1e-5)
    (gradient,) = torch.autograd.grad(score(start).sum(), start)
    assert (gradient.abs().amax(1) > 0).all()


@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("name", READERS | SQUEEZERS)
def test_certain_answers_do_not_mask_the_gradient_in_single_precision(name, scale):
    """At scale 100 all probabilities round to 0 and 1; differences of the score in double precision tell the truth."""
    detector = (READERS | SQUEEZERS)[name]()
    generator = torch.Generator().manual_seed(2)
    own = scale * (
        4 * torch.nn.functional.one_hot(torch.arange(8) % CLASSES) + torch.randn(8, CLASSES, generator=generator)
    )
    changes = [0.01 * scale * torch.randn(8, CLASSES, generator=generator) for _ in detector.views]
    assert scale == 1 or bool((own.softmax(1).amax(1) == 1).all())

    def score(logits):
        views = [Output(logits + change.to(logits), logits) for change in changes]
        return detector.score(Output(logits, logits), views)

    logits = own.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(logits).sum(), logits)
    steps = 1e-5 * torch.eye(CLASSES, dtype=torch.float64)
    slopes = [(score(own.double() + step) - score(own.double() - step)) / 2e-5 for step in steps]
    assert (gradient.abs().amax(1) > 0.1).all()
    torch.testing.assert_close(gradient.double(), torch.stack(slopes, 1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_was_learned_survives_pickling_and_a_state_dict(name):
    rows, label, index = samples()
    seen, of, _ = samples(40, seed=1)
    detector = learn(LEARNERS[name](), rows, label, index)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    loaded = LEARNERS[name]()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    if "layers" not in name:  # lambdas apart, a detector is plain
        assert torch.equal(pickle.loads(pickle.dumps(detector)).score(answer(seen, of)), loaded.score(answer(seen, of)))
    assert torch.equal(detector.score(answer(seen, of)), loaded.score(answer(seen, of)))


POOR = {
    "one class": lambda rows, label: (rows, torch.zeros_like(label)),
    "one sample": lambda rows, label: (rows[:1], label[:1]),
    "fewer samples than dimensions": lambda rows, label: (rows[:4], torch.arange(4) % CLASSES),
    "a constant feature": lambda rows, label: (rows * (torch.arange(rows.shape[1]) > 0), label),
    "all alike": lambda rows, label: (torch.ones_like(rows), label),
    "every sample twice": lambda rows, label: (rows.repeat(2, 1), label.repeat(2)),
    "an enormous scale": lambda rows, label: (rows * 1e8, label),
    "a tiny scale": lambda rows, label: (rows * 1e-8, label),
}


@pytest.mark.parametrize("poor", POOR)
@pytest.mark.parametrize("name", LEARNERS)
def test_poor_training_sets_give_numbers_and_gradients(name, poor):
    rows, label = POOR[poor](*samples()[:2])
    detector = learn(LEARNERS[name](), rows, label, torch.arange(len(rows)))
    seen, of, _ = samples(20, seed=1)
    seen = torch.cat([rows[:5], seen]).requires_grad_()
    scores = detector.score(answer(seen, torch.cat([label[:5], of])))
    assert scores.isfinite().all()
    (gradient,) = torch.autograd.grad(scores.sum(), seen)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LEARNERS)
def test_who_has_learned_nothing_says_so(name):
    rows, label, _ = samples(5)
    with pytest.raises(UserError, match="has learned nothing yet"):
        LEARNERS[name]().score(answer(rows, label))
    look = LEARNERS[name]().fit()
    with pytest.raises(UserError, match="no training samples"):
        look.conclude([look.findings()])


@pytest.mark.parametrize("name", LEARNERS)
def test_a_diverged_classifier_is_told(name):
    rows, label, index = samples()
    rows[3, 1] = torch.nan
    with pytest.raises(UserError, match="some training images is not finite"):
        learn(LEARNERS[name](), rows, label, index)


def test_features_must_be_named_once_and_given():
    rows, label, _ = samples(5)
    kind = LEARNERS["mahalanobis"]
    for wrong in ([], ["a", "a"], "embedding"):
        with pytest.raises(UserError, match="detector.features must be different names"):
            kind(features=wrong)
    with pytest.raises(UserError, match="does not give layer 'outer'; it gives"):
        kind(features=["outer"]).score(answer(rows, label))
