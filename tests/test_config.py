import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustfg.attacks import Engine
from robustfg.attacks.threats.base import step_length
from robustfg.cli.arguments import fitting
from robustfg.cli.assemble import OF_THE_SOURCE, PARTS, attacks_of
from robustfg.cli.config import CONF, EvaluateRoot, PredictRoot, TrainRoot, build, plain, register_schemas
from robustfg.cli.help import help_of
from robustfg.cli.trust import refuse_untrusted
from robustfg.core.errors import UserError

register_schemas()
COMMANDS = ("train", "evaluate")
OPTIONS = sorted(
    (folder.name, path.stem) for folder in CONF.iterdir() if folder.is_dir() for path in folder.glob("*.yaml")
)


def composed(command, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, overrides=["run_name=r", *overrides])


def nodes(node, path=""):
    """Every node with a target, nested ones included."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from nodes(value, f"{path}.{position}")


GIVEN = {  # what the program adds to a node
    "loss": {"channels": 4, "num_classes": 3},
    "evaluation": {"attacks": {}, "folder": "."},
    "evaluation.validation": {"attacks": {}},
    "evaluation.detection": {"detectors": {}, "nodes": {}},
    "attack": {"name": "x"},
    "logger": {"save_dir": "."},
    "unknown": {"known": None},
}


ASKED = {  # what the user must say
    "transfer": ["attack.transfer.surrogate=outputs/birds-softmax/other"],
    "features": ["attack.features.bank.path=bank.pt"],
    "universal": ["attack.universal.path=universal.pt"],
}


def test_there_are_options_to_test():
    assert len(OPTIONS) > 40


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_binds_to_what_it_configures(group, option):
    if group == "hydra":
        return  # composed by every other test
    config = plain(composed("evaluate" if option == "stored" else "train", f"{group}={option}", *ASKED.get(option, [])))
    for path, node in nodes(config):
        target = get_object(node["_target_"])
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        if path in ("training", "training.regime"):
            arguments = {key: value for key, value in arguments.items() if key not in ("epochs", "monitor")}
        if path == "loss":
            arguments.pop("phases", None)
        if path.startswith("loss.phases.") and path.count(".") == 2:
            arguments["name"] = "the key"
        if path == "evaluation":
            arguments = {key: value for key, value in arguments.items() if key not in PARTS}
        if path == "data":
            arguments = {key: value for key, value in arguments.items() if key not in OF_THE_SOURCE}
        top = path.split(".")[0]
        if path == "attack.transfer":
            arguments |= {"surrogate_name": "given by the program", "surrogate": torch.nn.Identity()}
        if path in GIVEN or (top in ("attack", "logger", "unknown") and path.count(".") == 1):
            arguments = GIVEN.get(path, GIVEN[top]) | arguments
        fitting(target, {key: v for key, v in arguments.items() if key in node and key != "surrogate"}, path)
        if node.get("_partial_"):
            inspect.signature(target).bind_partial(**arguments)
        else:
            inspect.signature(target).bind(**arguments)


@pytest.mark.parametrize("group", sorted({group for group, _ in OPTIONS} - {"hydra", "experiment"}))
def test_every_option_is_commented(group):
    for path in (CONF / group).glob("*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("typo", ["+typo=1", "typo=1", "trainer.typo=1", "loss=nope", "nope=gm"])
def test_unknown_keys_and_options_are_refused(command, typo):
    with pytest.raises((HydraException, OmegaConfBaseException, UserError)):
        plain(composed(command, typo))


def test_errors_of_nested_nodes_are_told_plainly():
    config = plain(composed("train", "epsilon=-1/255"))
    with pytest.raises(UserError, match="epsilon must be >= 0, got -1/255"):
        build(config["attack"]["pgd"], "attack.pgd")


def test_experiments_override_everything_but_the_command_line():
    assert composed("train").trainer.max_epochs != 3
    assert composed("train", "experiment=smoke").trainer.max_epochs == 3
    assert composed("train", "experiment=smoke", "trainer.max_epochs=4").trainer.max_epochs == 4


def test_a_regime_brings_its_length_unless_the_trainer_is_told():
    assert composed("train").trainer.max_epochs == 18
    assert composed("train").monitor == "val/accuracy"
    assert composed("train", "training=adversarial").monitor == "val/robust_accuracy"
    assert composed("train", "training=adversarial").trainer.max_epochs == 26
    assert composed("train", "training=adversarial", "trainer.max_epochs=5").trainer.max_epochs == 5


def test_seed_zero_counts():
    assert plain(composed("train", "seed=0"))["seed"] == 0


def test_one_epsilon_reaches_training_and_evaluation():
    config = plain(composed("train", "training=adversarial", "epsilon=4/255"))
    assert config["attack"]["pgd"]["threat"]["epsilon"] == "4/255"
    assert config["training"]["attack"]["pgd7"]["threat"]["epsilon"] == "4/255"


def test_the_training_attack_can_be_chosen():
    config = plain(composed("train", "training=adversarial", "attack@training.attack=mim"))
    assert list(config["training"]["attack"]) == ["mim"]


def test_accv2020_has_the_eight_settings_of_the_paper():
    suite = plain(composed("train", "attack=accv2020"))["attack"]
    settings = {
        name: (
            a["threat"]["epsilon"],
            a["steps"],
            a["random_start"],
            a["last_iterate"],
            a["step"]["_target_"].split(".")[-1],
            str(a["step"]["size"]),
        )
        for name, a in suite.items()
    }
    expected = {}
    for eps, pgd_step in ((2, "1/255"), (8, "2/255")):
        radius = f"{eps}/255"
        expected[f"fgsm1_{eps}"] = (radius, 1, True, True, "Steepest", radius)
        expected[f"bim10_{eps}"] = (radius, 10, False, True, "Steepest", "eps/10")
        expected[f"pgd10_{eps}"] = (radius, 10, True, True, "Steepest", pgd_step)
        expected[f"mim10_{eps}"] = (radius, 10, False, True, "Momentum", "eps/10")
    assert settings == expected


FOREIGN = (
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "torch.load",
    "torchvision.transforms.v2.Lambda",
    "robustfg.cli.config.build",
    "robustfg.attacks.base.torch.load",
    "robustfg.evaluation.records.sqlite3.connect",
)


@pytest.mark.parametrize(
    "node",
    [
        {"embedding_dim": ({"_target_": "tempfile.mkdtemp"},)},
        {"embedding_dim": "${oc.create:{_target_:tempfile.mkdtemp}}"},
        {"embedding_dim": "${oc.env:HOME}"},
        {"x": {1, 2}},
    ],
)
def test_a_stored_config_holds_resolved_plain_data_only(node):
    with pytest.raises(UserError, match="the checkpoint's config"):
        refuse_untrusted({"loss": node})


@pytest.mark.parametrize("target", FOREIGN)
def test_a_stored_config_may_not_name_foreign_code(target):
    with pytest.raises(UserError, match="not robustfg's|does not exist"):
        refuse_untrusted({"model": {"deep": [{"_target_": target}]}})


def test_a_stored_config_of_ours_is_trusted_and_others_on_request(tmp_path, monkeypatch):
    for option in ("birds", "digits", "folder", "cifar10"):
        refuse_untrusted(plain(composed("train", f"data={option}", "training=adversarial"))["data"])
    (tmp_path / "theirs.py").write_text("class Loss: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"theirs.Loss.*trust="):
        refuse_untrusted({"_target_": "theirs.Loss"})
    assert "theirs" not in sys.modules  # refused before it was imported
    refuse_untrusted({"_target_": "theirs.Loss"}, ("theirs",))


HEAVY = {"torch", "pytorch_lightning", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "pyarrow", "wandb"}


@pytest.mark.parametrize(("command", "option"), [("train", "epsilon"), ("evaluate", "epsilon"), ("predict", "fpr")])
@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_import_nothing_heavy(command, option, flag):
    code = (
        "import sys, atexit, runpy\n"
        f"atexit.register(lambda: print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}), len(sys.modules)))\n"
        f"sys.argv = ['robustfg-{command}', *{flag!r}]\n"
        f"runpy.run_module('robustfg.{command}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout
    heavy, count = done.stdout.rsplit("HEAVY ", 1)[1].strip().rsplit(" ", 1)
    assert heavy == "[]"
    assert int(count) < 700


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_help_says_what_a_command_is_for_with_examples_and_a_line_for_every_group(command):
    text = help_of(command, ["--help"])
    purpose, examples = text.split("\n\n")[:2]
    assert purpose.endswith(".")
    assert len(re.findall(rf"-m robustfg\.{command} ", examples)) == 3
    config = (CONF / f"{command}.yaml").read_text()
    groups = set(re.findall(r"^  - ([a-z]\w*):", config, re.MULTILINE)) - {"hydra"}
    assert groups == set(re.findall(r"^  (\w+): \w.*\n      ", text, re.MULTILINE))
    for option in get_type_hints({"train": TrainRoot, "evaluate": EvaluateRoot, "predict": PredictRoot}[command]):
        assert re.search(rf"^  {option}: .*", text, re.MULTILINE), option


def test_help_with_a_file_explains_the_options_of_that_file():
    text = help_of("train", ["loss=gm", "--help"])
    assert "margin: 0.3 # alpha" in text
    assert "ramp_epochs: 5 # both grow linearly" in text
    assert help_of("train", ["attack=[fgsm,mim]", "--help"]).count("attack=") >= 2
    with pytest.raises(UserError, match="loss=gmm: there is no such file; choose from arcface"):
        help_of("train", ["loss=gmm", "--help"])


def test_a_users_own_options_come_through_config_dir(tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: robustfg.losses.Softmax\nlabel_smoothing: 0.3\n")
    done = subprocess.run(
        [sys.executable, "-m", "robustfg.train", "--config-dir", str(tmp_path), "loss=mine", "--cfg", "job"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert OmegaConf.create(done.stdout).loss.label_smoothing == 0.3


def test_a_multirun_with_ddp_is_refused_with_the_ways_out(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "robustfg.train", "-m", "seed=0,1", "trainer=ddp", "trainer.devices=2",
         f"output={tmp_path}"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "trainer=ddp_spawn" in done.stderr
    assert "launcher" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_layers_hold():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], capture_output=True, text=True, check=False, cwd=CONF.parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("option", "asked"), [(option, words[0].split("=")[0]) for option, words in ASKED.items()])
def test_what_the_user_must_say_is_named(option, asked):
    with pytest.raises(UserError, match=asked):
        plain(composed("train", f"attack={option}"))


def test_siblings_are_the_species_of_a_genus_where_the_data_knows_them():
    config = plain(composed("train", "attack=pgd_siblings"))
    genera = ("a", "a", "b", "b")
    assert attacks_of(config, ("1", "2", "3", "4"), genera)["pgd_siblings"].targets.groups == list(genera)
    assert attacks_of(config, ("1", "2"))["pgd_siblings"].targets.groups is None


def test_confusion_is_left_for_the_evaluation_to_measure_or_given():
    targets = attacks_of(plain(composed("train", "attack=pgd_confused")), ("a", "b"), ("x", "x"))[
        "pgd_confused"
    ].targets
    assert targets.confusion is None
    given = plain(composed("train", "attack=pgd_confused", "attack.pgd_confused.targets.confusion=[[5,1],[2,4]]"))
    assert attacks_of(given, ("a", "b"))["pgd_confused"].targets.confusion == [[5, 1], [2, 4]]


@pytest.mark.parametrize("suite", ["standard", "autoattack"])
def test_suites_are_cascades_of_their_stages_in_order_with_one_epsilon(suite):
    attack = attacks_of(plain(composed("train", f"attack={suite}", "epsilon=4/255")), ())[suite]
    assert {stage.threat.radius for stage in attack.attacks.values()} == {4 / 255}
    stages = {
        "autoattack": ["apgd_ce", "apgd_t", "fab_t", "square"],
        "standard": ["apgd_ce", "apgd_dlr", "apgd_t", "square"],
    }
    assert list(attack.attacks) == stages[suite]
    assert attack.attacks["square"].rescale_schedule is (suite == "standard")


def test_one_engine_runs_the_whole_suite_but_for_attacks_with_an_engine_of_their_own():
    config = plain(
        composed(
            "evaluate", "attack=[fgsm,standard,bim]", "evaluation.engine.fixed_batch=64",
            "evaluation.engine.compile=cudagraphs",
            "+attack.bim.engine={_target_:robustfg.attacks.Engine,samples:3}",
        )
    )  # fmt: skip
    suite = attacks_of(config, ())
    recorded = Engine(fixed_batch=64, compile="cudagraphs")
    assert {stage.engine for stage in (suite["fgsm"], *suite["standard"].attacks.values())} == {recorded}
    assert suite["bim"].engine == Engine(samples=3)
    assert attacks_of(plain(composed("evaluate")), ())["fgsm"].engine == Engine()


def test_an_engine_that_cannot_be_is_told_by_its_option():
    for override, told in {
        "evaluation.engine.compile=true": r"^evaluation.engine.compile needs engine.fixed_batch",
        "evaluation.engine.fixed_batch=many": r"^evaluation.engine.* must be",
    }.items():
        with pytest.raises(UserError, match=told):
            attacks_of(plain(composed("train", override)), ())
    with pytest.raises(UserError, match=r"^attack.foolbox_pgd: evaluation.engine.samples must be 1 for foolbox"):
        attacks_of(plain(composed("train", "attack=foolbox_pgd", "evaluation.engine.samples=2")), ())


def test_the_suite_for_l1_takes_its_rounds_and_schedules_from_autoattack():
    stages = attacks_of(plain(composed("train", "attack=autoattack_l1")), ())["autoattack_l1"].attacks
    assert {(stage.threat.norm, stage.threat.radius) for stage in stages.values()} == {("l1", 12.0)}
    assert [stage.rounds for stage in stages.values()] == [5, 5, 1, 1]
    assert stages["fab_t"].targets == 9
    assert stages["apgd_ce"].larger_first
    assert stages["apgd_t"].larger_first
    assert not stages["square"].rescale_schedule


@pytest.mark.parametrize(("regime", "name"), [("ccat", "ccat"), ("mcat", "lkd")])
def test_recipes_of_ccat_and_mcat_have_the_releases_numbers(regime, name):
    config = plain(composed("train", f"experiment={regime}"))
    options = {key: value for key, value in config["training"].items() if key not in ("epochs", "monitor")}
    made = build(options, "training")
    attack = made.attack[name]
    assert step_length(attack.size, attack.threat.radius) == pytest.approx(0.005)
    assert (attack.steps, attack.momentum, attack.factor) == (40, 0.9, 1.5)
    assert (attack.random_start, attack.last_iterate) == (True, True)
    assert (made.rho, config["optimizer"]["lr"], config["data"]["batch_size"]) == (10, 0.075, 100)
    assert (made.clean_epochs, config["trainer"]["max_epochs"]) == ((60, 131) if regime == "mcat" else (0, 200))


def test_the_stages_of_mcat_are_its_phases():
    config = plain(composed("train", "experiment=mcat"))
    epochs = {name: phase["epochs"] for name, phase in config["loss"]["phases"].items()}
    assert epochs == {"stage_1": config["training"]["clean_epochs"], "stage_2": 71}
    assert sum(epochs.values()) == config["trainer"]["max_epochs"]


def test_detectors_go_by_their_own_names_and_all_of_them_stand_together():
    together = plain(composed("train", "detector=all"))["detector"]
    alone = {path.stem for path in (CONF / "detector").glob("*.yaml")} - {"all", "gm", "none"}
    assert set(together) == alone
    assert list(plain(composed("train", "detector=gm"))["detector"]) == ["likelihood", "mahalanobis"]
    assert plain(composed("train"))["detector"] == {}
    for name, node in together.items():
        refuse_untrusted(node)
        assert build(node, f"detector.{name}").fit is not None
