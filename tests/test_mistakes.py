"""Options that cannot be: one plain line that names the option, exit status 1, no traceback."""

from collections.abc import Sequence
from typing import Literal

import pytest
import warm
from commands import QUIET, config_of
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object

from robustfg.cli.arguments import fitting
from robustfg.cli.config import CONF, build
from robustfg.cli.errors import _plain, _takes, no_value, told
from robustfg.cli.suggestions import NoOptionError, closest, names_of
from robustfg.cli.words import as_typed
from robustfg.core.errors import UserError, refuse_outside


def line(command, *words):
    """The one line on stderr of a command that fails."""
    done = warm.run(f"robustfg.{command}", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("robustfg: ")
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.removeprefix("robustfg: ").removesuffix("\n")


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("train", ["los=gm"], "no option los; did you mean loss?"),
        ("train", ["+los=gm"], "no option los; did you mean loss?"),
        ("train", ["-m", "los=gm,softmax"], "no option los; did you mean loss?"),
        ("train", ["trainer.max_epoch=1"], "no option trainer.max_epoch; did you mean trainer.max_epochs?"),
        ("train", ["loss=gm", "loss.margn=1"], "no option loss.margn; did you mean loss.margin?"),
        ("evaluate", ["atack=pgd"], "no option atack; did you mean attack?"),
        ("predict", ["tpo=3", "a.png"], "no option tpo; did you mean to or top?"),
        ("predict", ["top=three", "a.png"], "top: Value 'three' of type 'str' could not be converted to Integer"),
        ("train", ["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be >= 0, got -1"),
        ("train", ["loss=[gm"], "cannot read the option loss=[gm: no viable alternative at input '[gm'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_does_not_exist_is_told_with_what_was_meant(command, words, told):
    assert line(command, *words) == told


@pytest.mark.process
def test_a_key_that_no_constructor_takes_is_told_where_it_is_one(tmp_path):
    told = line("train", "data=digits", "loss=gm", "+evaluation.max_test_samples=96", f"output={tmp_path}", QUIET)
    assert told == "no option evaluation.max_test_samples; did you mean data.max_test_samples?"


@pytest.mark.process
def test_values_of_the_wrong_kind_are_told_before_anything_is_trained(tmp_path):
    told = line("train", "data=digits", "trainer.max_epochs=two", f"output={tmp_path}", QUIET)
    assert told == "trainer.max_epochs must be a whole number or null, got two"
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["attack=pdg"], "no attack=pdg; closest are pgd, "),
        (["loss=gmm"], "no loss=gmm; closest are gm, "),
        (["loss=mcat"], "no loss=mcat; experiment=mcat and training=mcat exist; "),
        (["detector=magic"], "no detector=magic; closest are "),
    ],
)
def test_a_choice_that_a_group_does_not_have_is_told_with_those_it_has(words, told):
    found = line("train", *words)
    assert found.startswith(told)
    group = words[0].partition("=")[0]
    first, listed = found.split(f"; all of {group}: ")
    assert listed.split(", ") == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert "exist" in first or len(first.split(", ")) == 3


WHOLE = {"data": {"max_test_samples": 1, "batch_size": 2}, "loss": {"margin": 1, "_target_": "x"}, "seed": 0}


def test_names_of_options_are_told_with_the_parts_that_hold_them():
    assert list(names_of(WHOLE)) == ["data", "data.max_test_samples", "data.batch_size", "loss", "loss.margin", "seed"]


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("evaluation.max_test_samples", ["data.max_test_samples"]),
        ("los", ["loss"]),
        ("loss.margni", ["loss.margin"]),
        ("data", []),  # not itself, nor what it holds
        ("zebra", []),
    ],
)
def test_what_was_meant_is_the_same_last_part_or_a_like_name(option, meant):
    assert closest(option, names_of(WHOLE)) == meant


def test_several_that_may_be_meant_are_listed_in_english():
    known = ["a.epoch", "b.epoch", "c.epoch"]
    assert str(NoOptionError("d.epoch", known[:2])).endswith("did you mean a.epoch or b.epoch?")
    assert str(NoOptionError("d.epoch", known)).endswith("did you mean a.epoch, b.epoch or c.epoch?")


def test_where_nothing_is_alike_the_options_beside_it_are_named():
    error = NoOptionError("data.zebra", names_of(WHOLE))
    assert str(error) == "no option data.zebra; there are data.batch_size, data.max_test_samples"
    assert str(NoOptionError("data.zebra").among(names_of(WHOLE))) == str(error)


@pytest.mark.parametrize("node", [{"_target_": "robustfg.losses.Softmax", "typo": 1}, 3])
def test_what_cannot_be_built_is_told_as_an_option_that_does_not_exist(node):
    with pytest.raises(UserError, match=r"^no option loss"):
        build(node, "loss", channels=4, num_classes=3)


def test_an_unknown_key_deep_inside_a_node_is_told_by_its_whole_name():
    node = config_of("train", "attack=pgd")["attack"]["pgd"]
    node["threat"]["epsilonn"] = 1
    with pytest.raises(
        UserError, match=r"^no option attack.pgd.threat.epsilonn; did you mean attack.pgd.threat.epsilon"
    ):
        build(node, "attack.pgd", name="pgd")


def test_an_attack_that_is_no_node_is_told(tmp_path):
    from robustfg.cli.assemble import attacks_of

    with pytest.raises(UserError, match=r"^no option attack.typo"):
        attacks_of(config_of("train", "+attack.typo=3"), ("a", "b"))


def example(
    count: int,
    rate: float = 1.0,
    share: float | None = None,
    sure: bool = True,
    radius: float | str = 1,
    parts: Sequence[float] = (),
    how: Literal["one", "two"] = "one",
):
    return count


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"count": "two"}, "x.count must be a whole number, got two"),
        ({"count": 2.5}, "x.count must be a whole number, got 2.5"),
        ({"count": None}, "x.count must be a whole number, got null"),
        ({"rate": "fast"}, "x.rate must be a number, got fast"),
        ({"share": "half"}, "x.share must be a number or null, got half"),
        ({"sure": "perhaps"}, "x.sure must be true or false, got perhaps"),
        ({"radius": [1]}, "x.radius must be a number or text, got [1]"),
        ({"count": True}, "x.count must be a whole number, got True"),
        ({"parts": "abc"}, "x.parts must be a list of numbers, got abc"),
        ({"parts": [1, "a"]}, "x.parts must be a list of numbers, got [1, 'a']"),
        ({"how": "both"}, "x.how must be one, two, got both"),
        ({"rate": [1]}, "x.rate must be a number, got [1]"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told(given, told):
    with pytest.raises(UserError) as error:
        fitting(example, given, "x")
    assert str(error.value) == told


def test_a_whole_number_written_with_a_point_becomes_one():
    assert repr(fitting(example, {"count": 3.0, "rate": 3.0}, "x")) == "{'count': 3, 'rate': 3.0}"


@pytest.mark.parametrize("given", [{"count": 3.0}, {"rate": 1}, {"share": None}, {"sure": False}, {"radius": "8/255"}])
def test_a_value_that_can_be_used_or_is_not_a_number_alone_is_let_through(given):
    fitting(example, given, "x")


def test_arguments_of_lightnings_trainer_are_known():
    trainer = get_object("pytorch_lightning.Trainer")
    fitting(trainer, {"max_epochs": 3, "precision": "16-mixed", "devices": "auto", "limit_train_batches": 0.5}, "t")
    with pytest.raises(UserError, match="t.max_epochs must be a whole number or null, got two"):
        fitting(trainer, {"max_epochs": "two"}, "t")
    with pytest.raises(UserError, match="no option t.max_epoch; did you mean t.max_epochs"):
        fitting(trainer, {"max_epoch": 2}, "t")


# --- Values that no option takes, and words as they were typed


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("nan"), "a finite number, got nan"), (float("-inf"), "a finite number, got -inf"), (10**30, "below 2^63")],
)
def test_numbers_that_nothing_can_hold_are_refused_wherever_they_stand(value, told):
    node = config_of("train", "attack=pgd")["attack"]["pgd"]
    node["threat"]["epsilon"] = value
    with pytest.raises(UserError) as error:
        build(node, "attack.pgd", name="pgd")
    assert str(error.value).startswith(f"attack.pgd.threat.epsilon must be {told}")


def test_whatever_a_constructor_raises_is_told_with_its_option():
    node = config_of("train", "model=tiny")["model"] | {"options": {"channels": [1]}}
    with pytest.raises(UserError, match=r"^model\.name=resnet18 .*layer2"):
        build(node, "model")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run_name=2026_11_30", "2026_11_30"),
        ("run_name=0012", "0012"),
        ("run_name=1e5", "1e5"),
        ("run_name=true", "true"),
        ("run_name=it's", "it's"),
        ("run_name=back\\", "back\\"),
        ("init_from=runs/epoch=3.ckpt", "runs/epoch=3.ckpt"),
        ("init_from=null", None),
        ("output=2026_11", "2026_11"),
        ("epsilon=4/255", "4/255"),
    ],
)
def test_a_text_is_read_as_it_was_typed(typed, read):
    config = config_of("train", *as_typed([typed]))
    assert config[typed.partition("=")[0]] == read


@pytest.mark.parametrize("option", ["run_name", "output"])
def test_null_is_no_name_of_a_folder(option):
    assert as_typed([f"{option}=null"]) == [f"{option}=null"]
    with pytest.raises(ConfigCompositionException) as error:
        config_of("train", f"{option}=null")
    assert told(error.value, "train", []) == f"{option} cannot be null; leave it out"


def test_what_hydra_must_read_is_left_to_it():
    words = [
        "loss=gm,softmax",
        "attack=[fgsm,pgd]",
        "+x={a:1}",
        "--cfg",
        "job",
        "-m",
        "seed=range(1,3)",
        "~callbacks.last",
    ]
    assert as_typed(words) == words


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\nb", "\x1b[31m", "x" * 300])
def test_a_run_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(UserError, match="^run_name must be the name of a folder"):
        as_typed([f"run_name={name}"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (RuntimeError("Caught in worker\nrobustfg.errors.UserError: cannot read a.png\n"), "cannot read a.png"),
    ],
)
def test_errors_of_the_machine_and_of_other_processes_are_one_line(error, told):
    assert _plain(error) == told


def test_the_traceback_of_an_error_of_ours_is_kept_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = _plain(ZeroDivisionError("division by zero"))
    (kept,) = tmp_path.iterdir()
    assert told.startswith("unexpected ZeroDivisionError: division by zero; ")
    assert str(kept) in told
    assert "ZeroDivisionError" in kept.read_text()


@pytest.mark.parametrize(
    ("group", "value", "told"),
    [
        ("hydra/launcher", "joblib", "pip install hydra-joblib-launcher"),
        ("hydra/sweeper", "optuna", "pip install hydra-optuna-sweeper"),
        ("attack", "null", "choose one; all of attack: "),
    ],
)
def test_a_choice_from_another_package_says_what_to_install(group, value, told):
    assert told in no_value(group, value, ["basic"])


def test_an_option_that_no_file_lists_is_taken_where_its_constructor_takes_it():
    config = config_of("train")
    assert _takes(config, "trainer.profiler")
    assert _takes(config, "model.options.drop_path_rate")
    assert not _takes(config, "trainer.profilr")
    assert not _takes(config, "nothing.at_all")


@pytest.mark.parametrize(
    ("bounds", "value", "told"),
    [
        ({"least": 0}, -1, ">= 0, got -1"),
        ({"above": 0}, 0, "> 0, got 0"),
        ({"above": 0, "most": 1}, 2, "in (0, 1], got 2"),
        ({"least": 0, "below": 1}, float("nan"), "in [0, 1), got nan"),
        ({}, float("inf"), "a finite number, got inf"),
    ],
)
def test_numbers_outside_a_range_are_told_with_the_range(bounds, value, told):
    with pytest.raises(UserError) as error:
        refuse_outside("x", value, **bounds)
    assert str(error.value) == f"x must be {told}"
    refuse_outside("x", None, **bounds)
    refuse_outside("x", 0.5, **bounds)
