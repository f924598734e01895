import logging
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_classifiers import classifier, data, guard, pgd, trainer

from robustfg.core.errors import UserError
from robustfg.training import Fast
from robustfg.training.callbacks import WarmedEma


def judged(*checks, **options):
    judge = guard(**options)
    return [judge.is_good(single, multi) for single, multi in checks]


def test_a_fall_under_the_multi_step_attack_alone_is_overfitting():
    assert judged((0.4, 0.4), (0.5, 0.45), (0.9, 0.05)) == [True, True, False]


def test_training_that_gets_worse_as_a_whole_is_not():
    assert judged((0.5, 0.4), (0.5, 0.45), (0.1, 0.05)) == [True, True, True]


def test_a_fall_within_the_noise_is_not():
    assert judged((0.5, 0.4), (0.6, 0.21), (0.6, 0.4)) == [True, True, True]


def test_a_slow_fall_is_seen_against_the_mean_of_three():
    assert judged((0.6, 0.6), (0.65, 0.5), (0.7, 0.4), (0.8, 0.29)) == [True, True, True, False]


def test_the_size_of_the_fall_can_be_chosen():
    assert judged((0.5, 0.4), (0.5, 0.29), drop=0.1) == [True, False]
    assert judged((0.5, 0.4), (0.5, 0.29), drop=0.12) == [True, True]


@pytest.mark.parametrize(
    ("checks", "batches", "expected"),
    [(1, 6, [5]), (2, 6, [2, 5]), (4, 6, [1, 2, 4, 5]), (2, 7, [3, 6]), (9, 3, [0, 1, 2])],
)
def test_checks_are_spread_over_the_epoch(checks, batches, expected):
    assert [batch for batch in range(batches) if guard(checks_per_epoch=checks).due(batch, batches)] == expected


@given(checks=st.integers(1, 40), batches=st.integers(1, 60))
def test_there_are_as_many_checks_as_asked_for_at_equal_distances(checks, batches):
    due = [batch for batch in range(batches) if guard(checks_per_epoch=checks).due(batch, batches)]
    assert len(due) == min(checks, batches)
    assert due[-1] == batches - 1
    gaps = [after - before for before, after in pairwise([-1, *due])]
    assert max(gaps) - min(gaps) <= 1


class Planted(dict):
    """Makes the guard see these accuracies, and keeps the weights that it saw them at."""

    def __init__(self, monkeypatch, watched, checks):
        super().__init__()
        self.watched, self.judge, self.checks = watched, watched.is_good, iter(checks)
        monkeypatch.setattr(watched, "is_good", self.see)

    def see(self, single, multi):
        assert 0 <= multi <= 1
        self[len(self)] = self.model.backbone.layers[0].weight.detach().clone()
        return self.judge(*next(self.checks))


OVERFITTING = [(0.4, 0.4), (0.5, 0.45), (0.9, 0.0)]


def train(monkeypatch, caplog, callbacks=(), **options):
    watched = guard(checks_per_epoch=2, **options)
    regime = Fast(attack={"fast": pgd(1, "fast", "1.25*eps")}, guard=watched)
    planted, model, loop = (
        Planted(monkeypatch, watched, OVERFITTING),
        classifier(regime),
        trainer(max_epochs=4, callbacks=list(callbacks)),
    )
    planted.model = model
    used = []
    attack_at = regime.attack_at
    monkeypatch.setattr(regime, "attack_at", lambda step: used.append(attack_at(step).name) or attack_at(step))
    states = []
    mend = torch.optim.SGD.zero_grad
    monkeypatch.setattr(
        torch.optim.SGD, "zero_grad", lambda self, **k: states.append(len(self.state)) or mend(self, **k)
    )
    with caplog.at_level(logging.WARNING):
        loop.fit(model, data(8))
    return planted, model, loop, used, states


def test_after_a_bad_check_training_stops_with_the_last_good_weights(monkeypatch, caplog):
    planted, model, loop, used, _ = train(monkeypatch, caplog)
    assert loop.global_step == 9  # the third check of three batches
    assert torch.equal(model.backbone.layers[0].weight, planted[1])
    assert not torch.equal(planted[1], planted[2])
    assert set(used) == {"fast"}
    assert "Catastrophic overfitting in epoch 1, step 9" in caplog.text
    assert "training stops" in caplog.text
    assert loop.callback_metrics["train/overfitting"] == 1


def test_a_rescue_goes_on_from_the_last_good_weights_without_momentum(monkeypatch, caplog):
    planted, model, loop, used, states = train(monkeypatch, caplog, rescue={"pgd": pgd(4)})
    assert loop.global_step == 24
    assert used == ["fast"] * 9 + ["pgd"] * 15
    assert len(planted) == 3  # unguarded from then on
    assert not torch.equal(model.backbone.layers[0].weight, planted[1])
    assert states[1] > 0
    assert states[9] == 0  # cleared, right after the bad check
    assert "goes on with pgd" in caplog.text


class Averages(WarmedEma):
    """Keeps the running average after every step."""

    def __init__(self):
        super().__init__(decay=0.999)
        self.after = {}

    def on_train_batch_start(self, trainer, *rest):
        weight = self._average_model.module.backbone.layers[0].weight
        self.after[trainer.global_step] = weight.detach().clone()


def test_the_running_average_goes_back_to_the_last_good_check_too(monkeypatch, caplog):
    averages = Averages()
    planted, model, loop, _, _ = train(monkeypatch, caplog, [averages])
    assert loop.global_step == 9
    assert not torch.equal(averages.after[6], averages.after[8])
    assert not torch.equal(averages.after[6], planted[1])
    assert torch.equal(model.backbone.layers[0].weight, averages.after[6])  # of the end, as averages are


def test_a_rescue_goes_on_with_the_running_average_of_the_last_good_check(monkeypatch, caplog):
    averages = Averages()
    train(monkeypatch, caplog, [averages], rescue={"pgd": pgd(4)})
    assert torch.equal(averages.after[9], averages.after[6])
    assert not torch.equal(averages.after[10], averages.after[6])


def test_a_rescue_does_not_take_back_another_callbacks_wish_to_stop(monkeypatch, caplog):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 9:  # the bad check's
                trainer.should_stop = True

    _, _, loop, _, _ = train(monkeypatch, caplog, [Stop()], rescue={"pgd": pgd(4)})
    assert "goes on with pgd" in caplog.text
    assert loop.global_step == 9


def test_a_rescue_is_known_by_its_name_in_the_config():
    assert guard(rescue={"strong": pgd(4, "other")}).rescue.name == "strong"


def test_both_accuracies_are_those_of_the_batch_under_the_two_attacks(monkeypatch):
    watched, seen = guard(checks_per_epoch=6), []
    fast = pgd(1, "fast", "1.25*eps")
    monkeypatch.setattr(watched, "is_good", lambda *pair: seen.append(pair) or True)
    model, loop = classifier(Fast(attack={"fast": fast}, guard=watched)), trainer(max_epochs=3)
    expected = []

    def on_train_batch_end(outputs, batch, batch_idx):
        pair = []
        for attack in (fast, watched.attack):
            image = attack(model, batch.image, batch.label, batch.index, draw=loop.global_step)
            pair.append((model(image).logits.argmax(1) == batch.label).double().mean().item())
        expected.append(tuple(pair))

    monkeypatch.setattr(model, "on_train_batch_end", on_train_batch_end)
    loop.fit(model, data(8))
    assert len(seen) == 18
    assert seen == expected
    assert len(set(seen)) > 2
    assert model.training


def test_there_is_nothing_to_watch_in_clean_epochs(monkeypatch):
    watched, seen = guard(), []
    monkeypatch.setattr(watched, "is_good", lambda *pair: seen.append(pair) or True)
    regime = Fast(attack={"fast": pgd(1, "fast")}, guard=watched, clean_epochs=1, ramp_epochs=1)
    trainer(max_epochs=3).fit(classifier(regime), data(8))
    assert len(seen) == 2


def test_a_stopped_run_that_is_given_again_trains_no_further():
    watched = guard()
    watched.triggered = True
    loop = trainer()
    loop.fit(classifier(Fast(attack={"fast": pgd(1)}, guard=watched)), data(8))
    assert loop.global_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"drop": 0}, r"training\.guard\.drop must be in \(0, 1\), got 0"),
     ({"checks_per_epoch": 0}, r"training\.guard\.checks_per_epoch must be >= 1, got 0"),
     ({"rescue": {"a": pgd(), "b": pgd()}}, r"training\.guard\.rescue must be one attack, got a, b")],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        guard(**options)


def test_fast_takes_one_attack():
    with pytest.raises(UserError, match=r"training\.attack must be one attack, got a, b"):
        Fast(attack={"a": pgd(1), "b": pgd(1)})
