import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_phases import Means, classifier, fitted, phases

from robustfg.core.errors import UserError
from robustfg.training import Cosine, MultiStep, Phase, Phases


def lengths(*epochs):
    return Phases(tuple(Phase(name=f"p{i}", epochs=n) for i, n in enumerate(epochs)))


ACCV = lengths(5, 26, 21)


def test_phases_scaled_down_keep_their_proportions():
    assert ACCV.epochs == 52
    assert ACCV.stretched(52).spans == (5, 26, 21)
    assert ACCV.stretched(104).spans == (10, 52, 42)
    assert ACCV.stretched(16).spans == (2, 8, 6)
    assert ACCV.stretched(3).spans == (1, 1, 1)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 200))
def test_stretched_phases_fill_the_run_in_order_and_none_is_lost(epochs, more):
    total = len(epochs) + more
    spans = lengths(*epochs).stretched(total).spans
    assert len(spans) == len(epochs)
    assert sum(spans) == total
    assert min(spans) >= 1
    for longer, more_epochs in zip(spans, epochs, strict=True):
        assert longer <= 1 or abs(longer - total * more_epochs / sum(epochs)) < len(epochs)
        assert all(longer >= s for s, e in zip(spans, epochs, strict=True) if e < more_epochs)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_phases_at_their_own_length_are_as_declared(epochs):
    assert lengths(*epochs).stretched(sum(epochs)).spans == tuple(epochs)


def test_the_phase_of_every_epoch():
    assert [lengths(2, 1, 2).index(epoch) for epoch in (0, 1, 1.9, 2, 2.5, 3, 4, 4.9, 5, 9)] == [0] * 3 + [1] * 2 + [
        2
    ] * 5


def test_schedules_are_stretched_with_their_phase():
    plan = Phases(
        (Phase(name="a", epochs=10, lr={"x": 2.0}),
         Phase(name="b", epochs=20, lr={"x": 3.0}, schedule=MultiStep(milestones=[5, 10], gamma=0.1)),
         Phase(name="c", epochs=10, lr={"x": None}, schedule=Cosine()))
    )  # fmt: skip
    rate, other = (plan.stretched(80).rate(group, 0.5) for group in "xy")
    assert [rate(epoch) for epoch in (0, 19.9, 20, 29.9, 30, 40, 59.9, 60, 80)] == pytest.approx(
        [2, 2, 3, 3, 0.3, 0.03, 0.03, 0, 0]
    )
    assert [other(epoch) for epoch in (0, 20, 30, 60, 70, 80)] == pytest.approx([0.5, 0.5, 0.05, 0.5, 0.25, 0])


def selecting(*phases):
    plan = Phases(phases)
    return [plan.selects(epoch) for epoch in range(plan.epochs)]


def test_only_the_last_phase_selects_where_phases_freeze_or_survey():
    a, b = Phase(name="a", epochs=1), Phase(name="b", epochs=2)
    assert selecting(a, b) == [True, True, True]
    assert selecting(Phase(name="a", epochs=1, lr={"backbone": 0}), b) == [False, True, True]
    assert selecting(a, Phase(name="b", epochs=2, surveys=["push"])) == [False, True, True]
    assert selecting(Phase(name="a", epochs=1, lr={"x": 0.1}), b) == [True, True, True]
    assert selecting(Phase(name="a", epochs=1, lr={"x": 0}, selects=True), b) == [True, True, True]
    assert selecting(a, Phase(name="b", epochs=2, selects=False)) == [True, False, False]


def refused(message, **options):
    with pytest.raises(UserError, match=message):
        Phases((Phase(**({"name": "warm", "epochs": 1} | options)),)).refuse_unknown(Means(channels=6, num_classes=5))


def test_what_the_loss_does_not_have_is_refused_before_training():
    refused(r"loss\.phases\.warm\.lr\.head: unknown; known are backbone, means, last", lr={"head": 0.1})
    refused(r"loss\.phases\.warm\.weight_decay\.head: unknown", weight_decay={"head": 0.1})
    refused(r"loss\.phases\.warm\.coefficients\.push: unknown; known are pull", coefficients={"push": 0.1})
    refused(r"phases: loss Means has no survey named 'prune'", surveys=["means", "prune"])
    everything = {"backbone": 0, "means": None, "last": 0}
    refused(r"loss\.phases\.warm\.lr freezes everything; give one of backbone, means, last", lr=everything)
    refused(r"no phase selects", selects=False)


def test_bad_values_are_refused_by_name():
    refused(r"loss\.phases\.warm\.epochs must be .* >= 1, got 0; leave .* with loss\.phases\.warm=null", epochs=0)
    refused(r"loss\.phases\.warm\.lr\.means must be >= 0, got -1", lr={"means": -1})
    refused(r"loss\.phases\.warm\.weight_decay\.means must be >= 0, got -1", weight_decay={"means": -1})
    refused(r"loss\.phases\.warm\.surveys must be a list, such as \[push\]", surveys="push")


def test_groups_that_miss_a_parameter_are_refused(monkeypatch):
    monkeypatch.setattr(Means, "groups", lambda self: {"means": [self.means]})
    with pytest.raises(UserError, match="the groups of Means must hold each of its parameters once"):
        classifier(phases())


def test_more_phases_than_epochs_are_refused():
    with pytest.raises(UserError, match=r"trainer\.max_epochs must be >= 3, one for each of loss\.phases, got 2"):
        fitted(classifier(phases()), max_epochs=2)
