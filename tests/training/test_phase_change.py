import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException
from small_classifiers import Backbone, StoppedAt, guard, pgd, trainer
from small_phases import ClassMeans, Means, classifier, data, fitted, phases
from toy import SIZE, Convolutions
from two_ranks import found_by_two

from robustfg.classifier import Classifier
from robustfg.core.errors import UserError
from robustfg.losses import ProtoPNet
from robustfg.losses.prune import Prune
from robustfg.losses.push import Push
from robustfg.training import Fast, Phase, Phases
from robustfg.training.callbacks import WarmedEma
from robustfg.training.continuing import LastCheckpoint

SINGLE = {"precision": "32-true"}  # Lightning reads a checkpoint into float32 before it makes the model double


class Notes(pl.Callback):
    """What every step saw and left."""

    def __init__(self):
        self.rates, self.weights, self.trained, self.state = [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.trained.append({name for name, p in pl_module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.state.append({names[parameter] for parameter in trainer.optimizers[0].state})


def noted(model, **options):
    notes = Notes()
    fitted(model, callbacks=[notes, *options.pop("callbacks", [])], **options)
    return notes


def unaugmented(module):
    samples = [module.samples("train").under(module.fit_square)[i] for i in range(len(module.positions["train"]))]
    return torch.stack([s.image for s in samples]).double(), torch.stack([s.label for s in samples])


def trained_by_hand():
    """The phases of ``small_phases`` as a plain loop: SGD with momentum, coupled weight decay."""
    model, module = classifier(phases()).double(), data()
    means, last, backbone = model.loss.means, model.loss.last.weight, list(model.backbone.parameters())
    loader = module.train_dataloader()
    velocity = {}
    for epoch, pull, rates in (
        (0, 0.1, [([means], 0.05, 0.0)]),
        (1, 0.5, [([means], 0.02, 0.1), (backbone, 0.01, 0.02)]),
        (2, 0.5, [([means], 0.01, 0.1), (backbone, 0.005, 0.02)]),
        (3, 0.5, [([last], 0.003, 0.1)]),
    ):
        if epoch == 3:
            velocity.clear()
            image, label = unaugmented(module)
            with torch.no_grad():
                embedding = model.backbone(image).mean((2, 3))
                means.copy_((means + torch.stack([embedding[label == k].mean(0) for k in range(5)])) / 2)
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            embedding = model.backbone(batch.image.double()).mean((2, 3))
            logits = -(embedding[:, None] - means).square().sum(2) @ last.t()
            value = torch.nn.functional.cross_entropy(logits, batch.label)
            value = value + pull * (embedding - means[batch.label]).square().sum(1).mean()
            members = [(p, rate, decay) for group, rate, decay in rates for p in group]
            found = torch.autograd.grad(value, [p for p, _, _ in members])
            with torch.no_grad():
                for (p, rate, decay), gradient in zip(members, found, strict=True):
                    velocity[p] = 0.9 * velocity.get(p, 0) + gradient + decay * p
                    p -= rate * velocity[p]
    return model


def test_training_equals_a_plain_loop_over_the_phases():
    model, expected = fitted(classifier(phases())), trained_by_hand()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected.state_dict()[name], rtol=1e-9, atol=1e-11), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_step_has_the_learning_rates_of_its_phase():
    notes = noted(classifier(phases()))
    warm, full, half, last = [0.0, 0.05, 0.0], [0.01, 0.02, 0.0], [0.005, 0.01, 0.0], [0.0, 0.0, 0.003]
    assert notes.rates == [warm] * 6 + [full] * 6 + [half] * 6 + [last] * 6


def test_learning_rates_keep_to_the_epochs_when_gradients_are_accumulated_over_a_part_of_them():
    notes = noted(classifier(phases()), accumulate_grad_batches=4)
    warm, full, half, last = [0.0, 0.05, 0.0], [0.01, 0.02, 0.0], [0.005, 0.01, 0.0], [0.0, 0.0, 0.003]
    assert notes.rates == [warm] * 2 + [full] * 2 + [half] * 2 + [last] * 2


FROZEN = [("backbone", "loss.last"), ("loss.last",), ("loss.last",), ("backbone", "loss.means")]


def test_frozen_groups_have_no_gradient_no_state_and_do_not_move_by_a_bit():
    notes = noted(classifier(phases(), Convolutions), callbacks=[WarmedEma()], **SINGLE)
    names = set(dict(classifier(phases(), Convolutions).named_parameters()))
    for step in range(1, 24):
        still = {name for name in notes.weights[0] if name.startswith(FROZEN[step // 6])}
        assert notes.trained[step] == names - still
        assert notes.state[step] == names - still
        if step % 6:  # a survey may come before
            for name, value in notes.weights[step].items():
                unchanged = torch.equal(value, notes.weights[step - 1][name])
                assert unchanged == (name in still) or "num_batches" in name, (step, name)


@pytest.mark.parametrize("frozen_norms", [True, False])
def test_a_frozen_backbone_keeps_its_running_averages_unless_told_otherwise(frozen_norms):
    frozen = Phase(name="frozen", epochs=1, lr={"backbone": None}, frozen_norms=frozen_norms)
    plan = Phases((frozen, Phase(name="joint", epochs=1)))
    before = classifier(plan, Convolutions).state_dict()
    notes = noted(classifier(plan, Convolutions), max_epochs=2, **SINGLE)
    name = "backbone.layers.3.running_mean"
    assert torch.equal(notes.weights[5][name], before[name]) == frozen_norms
    assert not torch.equal(notes.weights[6][name], notes.weights[5][name])


def test_a_group_that_is_frozen_later_loses_its_state_and_stays():
    plan = Phases((Phase(name="joint", epochs=1), Phase(name="frozen", epochs=1, lr={"backbone": 0})))
    notes = noted(classifier(plan), max_epochs=2)
    assert len(notes.state[5]) == 6
    assert notes.state[6] == {"loss.means", "loss.last.weight"}
    assert all(torch.equal(v, notes.weights[11][k]) for k, v in notes.weights[5].items() if k.startswith("backbone"))


@pytest.mark.parametrize("fresh", [True, False])
def test_the_optimizer_forgets_at_the_start_of_a_phase_only_where_told(fresh):
    remembered = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            remembered.append(len(optimizer.state))

    plan = Phases((Phase(name="a", epochs=1), Phase(name="b", epochs=1, fresh_optimizer=fresh)))
    fitted(classifier(plan), callbacks=[Look()], max_epochs=2)
    assert remembered == [0] + [6] * 5 + [0 if fresh else 6] + [6] * 5


def test_a_guard_never_brings_back_weights_from_before_a_survey():
    watched = guard(checks_per_epoch=1)
    model = classifier(phases())
    model.regime = Fast(attack={"fast": pgd(1, "fast")}, guard=watched)
    kept = []

    class Look(pl.Callback):
        def on_before_zero_grad(self, *_):
            kept.append(watched.weights and watched.weights[0]["loss.means"].clone())

    fitted(model, callbacks=[Look()], limit_train_batches=5)
    assert torch.equal(kept[15], model.loss.means)  # as the survey left them; the last phase freezes them
    assert not torch.equal(kept[14], kept[15])


def test_a_survey_sees_every_training_sample_once_and_only_once_a_run():
    model, module = classifier(phases()), data()
    fitted(model)
    assert model.loss.surveys == [sorted(module.positions["train"].tolist())]


class Rows(pl.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows += [(step, name, value) for name, value in metrics.items() if name.startswith("survey/")]


def test_what_a_survey_found_is_logged():
    rows = Rows()
    fitted(classifier(phases()), logger=rows)
    assert rows.rows == [(18, "survey/means/samples", 55.0)]


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.fixture(scope="module")
def whole():
    return fitted(classifier(phases(), Convolutions, dropout=0.5), **SINGLE)


def resumed(path):
    torch.manual_seed(99)
    model = classifier(phases(), Convolutions, dropout=0.5)
    trainer(max_epochs=4, **SINGLE).fit(model, data(), ckpt_path=path, weights_only=True)
    return model


@pytest.mark.parametrize("stop", [0, 3, 6, 7, 17, 18, 19, 23])
def test_training_stopped_in_any_phase_continues_to_the_same_weights(whole, stop, tmp_path):
    keep = StoppedAt(tmp_path / "last.ckpt", stop)
    first = classifier(phases(), Convolutions, dropout=0.5)
    with pytest.raises(SIGTERMException):
        fitted(first, callbacks=[keep], **SINGLE)
    model = resumed(tmp_path / "last.ckpt")
    assert same(whole, model)
    assert len(first.loss.surveys + model.loss.surveys) == 1


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_training_killed_after_any_epoch_continues_to_the_same_weights(whole, epoch, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fitted(classifier(phases(), Convolutions, dropout=0.5), callbacks=[keep], enable_checkpointing=True, **SINGLE)
    model = resumed(tmp_path / f"epoch={epoch}.ckpt")
    assert same(whole, model)
    assert len(model.loss.surveys) == 1


@pytest.mark.parametrize("where", ["see", "conclude"])
def test_a_survey_broken_off_is_begun_again_on_the_old_weights(whole, where, tmp_path, monkeypatch):
    do = getattr(ClassMeans, where)

    def broken(self, *arguments):
        do(self, *arguments)
        raise KeyboardInterrupt

    keep = LastCheckpoint(tmp_path / "last.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(ClassMeans, where, broken)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fitted(classifier(phases(), Convolutions, dropout=0.5), callbacks=[keep], **SINGLE)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 18
    assert same(whole, resumed(tmp_path / "last.ckpt"))


def pruned_later(surveys):
    """A classifier with prototypes of which a survey forgets some, while momentum goes on."""
    torch.manual_seed(0)
    plan = Phases((Phase(name="all", epochs=1), Phase(name="fewer", epochs=1, surveys=surveys)))
    loss = ProtoPNet(channels=6, num_classes=5, prototypes_per_class=4, prototype_depth=3)
    return Classifier(
        backbone=Backbone(), loss=loss, num_classes=5,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9), phases=plan,
    )  # fmt: skip


def interrupted(survey):
    raise KeyboardInterrupt


@pytest.mark.parametrize("surveys", [["push", "prune"], ["prune", "push"]])
def test_momentum_of_what_a_survey_has_resized_is_forgotten_and_of_all_else_kept(surveys, tmp_path, monkeypatch):
    notes = noted(model := pruned_later(surveys), max_epochs=2, **SINGLE)
    assert len(model.loss.prototype.prototypes) < 20
    assert notes.weights[11]["loss.prototype.last_layer.weight"].shape == (5, len(model.loss.prototype.prototypes))
    keep = LastCheckpoint(tmp_path / "last.ckpt")
    with monkeypatch.context() as patch:  # the second survey is broken off, when the first may have pruned already
        patch.setattr({"push": Push, "prune": Prune}[surveys[1]], "findings", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fitted(pruned_later(surveys), callbacks=[keep], max_epochs=2, **SINGLE)
    again, last = pruned_later(surveys), tmp_path / "last.ckpt"
    trainer(max_epochs=2, limit_train_batches=6, **SINGLE).fit(again, data(), ckpt_path=last, weights_only=True)
    assert same(model, again)


def test_a_run_is_not_continued_under_other_spans(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fitted(classifier(phases()), callbacks=[keep], enable_checkpointing=True, **SINGLE)
    with pytest.raises(
        UserError, match=r"trainer\.max_epochs=8 gives the phases \[2, 4, 2\] epochs, but .* \[1, 2, 1\]"
    ):
        trainer(max_epochs=8, **SINGLE).fit(
            classifier(phases()), data(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True
        )


def test_an_average_of_the_weights_begins_anew_with_every_phase_and_keeps_what_is_frozen():
    averages = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            average = dict(ema._average_model.module.named_parameters())
            averages.append({name for name, value in pl_module.named_parameters() if torch.equal(value, average[name])})

    ema, model = WarmedEma(decay=0.9), classifier(phases())
    fitted(model, callbacks=[ema, Look()], **SINGLE)
    names = {name for name, _ in model.named_parameters()}
    assert [step for step, same in enumerate(averages) if same == names] == [0, 6, 18]
    assert all(
        averages[step] == {name for name in names if name.startswith(FROZEN[step // 6])} for step in (3, 9, 15, 21)
    )


def test_images_of_the_survey_are_not_augmented():
    module = data()
    plain = {int(i): image for batch in module.survey_dataloader() for image, i in zip(*batch[::2], strict=True)}
    for position in module.positions["train"].tolist():
        pixels = torch.from_numpy(module.source.train.image(position)).permute(2, 0, 1)
        assert torch.equal(plain[position], pixels / 255)
    assert plain[position].shape == (3, SIZE, SIZE)
    flipped = [not torch.equal(batch.image[0], plain[int(batch.index[0])]) for batch in module.train_dataloader()]
    assert any(flipped)


def test_a_decoded_image_is_kept_once_for_training_and_surveys():
    module = data()
    module.cache = True
    assert module.samples("train").under(module.fit_square).decoded is module.samples("train").decoded
    assert isinstance(classifier(None).loss, Means)


@pytest.mark.process
def test_two_processes_hold_the_same_weights_and_those_of_one(tmp_path):
    one, (first, second) = fitted(classifier(phases())), found_by_two("phase_ranks.py", tmp_path)
    for name, value in one.state_dict().items():
        assert torch.equal(first["Backbone"]["weights"][name], second["Backbone"]["weights"][name]), name
        assert torch.allclose(value, first["Backbone"]["weights"][name], rtol=1e-7, atol=1e-9), name
    assert first["Backbone"]["surveys"] == second["Backbone"]["surveys"] == one.loss.surveys
    found = [rank["Convolutions"] for rank in (first, second)]
    assert torch.equal(*(rank["weights"]["loss.means"] for rank in found))
    assert torch.allclose(*found[0]["embeddings"])  # with the first rank's running averages, which a checkpoint holds
