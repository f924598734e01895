import pytest
import torch
from small_classifiers import Backbone, classifier, data, fitted, trainer

from robustfg.core.errors import UserError
from robustfg.core.types import Batch
from robustfg.training import Free
from robustfg.training.regime import Moment

pytestmark = pytest.mark.numeric

RADIUS = 16 / 255


def batches(epochs, accumulate, batch_size):
    """The batches of every optimizer step, in the order of training."""
    module = data(batch_size)
    loader = module.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        epoch_batches = [(batch.image.double(), batch.label) for batch in loader]
        for first in range(0, len(epoch_batches), accumulate):
            yield epoch, first, len(epoch_batches), epoch_batches[first : first + accumulate]


def free_by_hand(replays, accumulate, batch_size, epochs=2, clip=None):
    model = classifier(None).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    noise = [torch.zeros(batch_size, 3, 12, 12, dtype=torch.float64) for _ in range(accumulate)]
    for epoch, first, total, group in batches(epochs, accumulate, batch_size):
        for _ in range(replays):
            optimizer.zero_grad()
            for slot, (image, label) in enumerate(group):
                model.loss.epoch = epoch + (first + slot) / total
                attacked = (image + noise[slot]).clamp(0, 1).requires_grad_(True)
                (model.loss.loss(model(attacked), label)["loss"] / accumulate).backward()
                noise[slot] = (noise[slot] + RADIUS * attacked.grad.sign()).clamp(-RADIUS, RADIUS)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return model, noise


@pytest.mark.parametrize(
    ("replays", "accumulate", "clip"), [(1, 1, None), (3, 1, None), (4, 1, 0.1), (3, 2, None), (2, 4, 0.1)]
)
def test_training_equals_a_plain_loop_of_replays(replays, accumulate, clip):
    regime = Free(epsilon="16/255", replays=replays)
    batch_size = 8 if accumulate == 1 else 4
    model = fitted(regime, batch_size, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    expected, noise = free_by_hand(replays, accumulate, batch_size, clip=clip)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-9, atol=1e-11), name
    assert all(torch.allclose(regime.noise[slot], noise[slot]) for slot in range(accumulate))
    assert not torch.allclose(classifier(None).double().backbone.layers[0].weight, model.backbone.layers[0].weight)


def test_an_epoch_counts_batches_and_the_schedule_ends_with_training():
    regime = Free(epsilon="16/255", replays=3)
    model, loop = classifier(regime), trainer()
    rates = []
    model.schedule = lambda epoch, epochs: rates.append((epoch, epochs)) or 1.0
    loop.fit(model, data(8))
    assert loop.global_step == 12
    assert rates[-1] == (2.0, 2)


def test_the_perturbation_grows_with_the_radius_and_is_clipped_to_it():
    regime, model = Free(epsilon="16/255", ramp_epochs=4), Backbone().double()
    _, _, _, ((image, label),) = next(batches(1, 1, 8))
    samples = (image, label, torch.arange(8))
    for epoch in (1.0, 2.0, 4.0, 4.0):
        model(regime.craft(model, Batch(*samples), Moment(0, epoch))).sum().backward()
        assert regime.noise[0].abs().max() <= RADIUS * epoch / 4 + 1e-12
    assert regime.noise[0].abs().max() == pytest.approx(RADIUS)


def test_no_replay_is_refused_by_name():
    with pytest.raises(UserError, match=r"training\.replays must be >= 1, got 0"):
        Free(epsilon="8/255", replays=0)


def test_images_that_are_not_pixels_are_refused_not_clamped():
    samples = Batch(2 * torch.rand(2, 3, 12, 12), torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\]"):
        Free(epsilon="16/255").craft(classifier(None), samples, Moment(0, 0.0))
