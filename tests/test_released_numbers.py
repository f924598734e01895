"""Options that are said to be as released, or the paper's, against the numbers of those sources."""

import pytest
from omegaconf import OmegaConf

from robustfg.cli.config import CONF

THERE = {
    # P2333/Max-Mahalanobis-Training, train.py: mean_var=10 times unit vectors, -sum of squares
    "loss/mmc": {"square": 10.0**2, "factor": 1.0, "embedding_dim": 256},
    "loss/mmlda": {"square": 10.0**2, "factor": 1.0, "embedding_dim": 256},
    # jschenthu/GM-Loss: cifar10_release.py, mnist_release.py, face/losses.py
    "loss/gm": {"margin_start": 0.1, "likelihood_start": 0.01},
    "loss/gm_cifar_release": {"margin": 0.3, "likelihood": 0.1, "ramp_epochs": 30, "likelihood_factor": 1.0},
    "loss/gm_mnist_release": {
        "margin": 1.0, "likelihood": 0.1, "ramp_epochs": 5, "likelihood_factor": 1.0,
        "likelihood_over_all_classes": True,
    },
    "loss/initial_means/drawn": {"squared_length": 2 / 3},
    "loss/cosface": {"scale": 64.0, "margin": 0.40},
    "loss/arcface": {"scale": 64.0, "margin": 0.5},
    # aamir-mustafa/pcl-adversarial-defense, pcl_training.py; rates a tenth for our momentum of 0.9
    "loss/pcl": {
        "near": 1, "far": 1e-4, "hidden_dim": 1024, "phases.train.lr.near": 0.5 / 10, "phases.train.lr.far": 1e-4 / 10,
    },
    # wy1iu/LargeMargin_Softmax_Loss, cifar10: type DOUBLE, base, gamma times 30,000 steps over 18 epochs, power
    "loss/large_margin_softmax": {"multiple": 2, "lambda_start": 1000, "annealing": 0.033, "lambda_power": 45},
    # krishnakanthnakka/RobustFineGrained
    "loss/maxsep": {
        "prototypes_per_class": 10, "prototype_depth": 128, "attention": 1, "cluster": 100, "separation": 0.08,
        "l1": 1e-4, "dropout": 0.8, "similarity_epsilon": 1e-4,
    },
    "loss/maxsep_released": {
        "dropout_in_maps": True, "attention_epsilon": 0.0, "attention_over_batch": True, "true_class_attention": False,
        "detach_attention": False, "clamp_prototypes": False, "push_by_evidence": False,
    },
    "loss/attention_pooling": {"dropout": 0.8, "std": 1e-3},
    # cfchen-duke/ProtoPNet, settings.py
    "loss/protopnet": {
        "prototypes_per_class": 10, "prototype_depth": 128, "cluster": 0.8, "separation": 0.08, "l1": 1e-4,
        "similarity_epsilon": 1e-4,
    },
    "data/augment/papers": {"rotation": 15, "skew": 0.2, "shear": 10, "flip": 0.5},
    # yaodongyu/TRADES, YisenWang/MART, csdongxian/AWP, locuslab/fast_adversarial
    "training/trades": {"beta": 6.0, "steps": 10, "step_size": "0.226*eps"},  # 0.007 / 0.031
    "training/mart": {"beta": 5.0, "attack.pgd10.steps": 10},
    "training/awp": {"gamma": 0.005},
    "training/fast": {
        "attack.fast.step.size": "1.25*eps", "attack.fast.steps": 1, "guard.attack.steps": 5,
        "guard.attack.step.size": "eps/4", "guard.drop": 0.2, "guard.checks_per_epoch": 1, "craft_in_train_mode": True,
    },
    # davidstutz/confidence-calibrated-adversarial-training and jschenthu/GM-Loss, experiments/config
    "training/ccat": {
        "attack.ccat.steps": 40, "attack.ccat.size": "eps/6", "attack.ccat.momentum": 0.9, "attack.ccat.factor": 1.5,
        "rho": 10,
    },
    "training/mcat": {
        "attack.lkd.steps": 40, "attack.lkd.size": "eps/6", "attack.lkd.momentum": 0.9, "attack.lkd.factor": 1.5,
        "rho": 10, "beta": 0.5, "nearest": 1.5, "threshold": 0.7,
    },
    "experiment/mcat": {
        "epsilon": 0.03, "data.batch_size": 100, "loss.margin": 0.1, "loss.likelihood": 0.05, "loss.margin_start": 0.01,
        "loss.likelihood_start": 0.1, "optimizer.lr": 0.075, "trainer.max_epochs": 131, "training.clean_epochs": 60,
    },
    "experiment/ccat": {"epsilon": 0.03, "data.batch_size": 100, "optimizer.lr": 0.075, "scheduler.gamma": 0.95},
    # krishnakanthnakka/RobustFineGrained, run_advexps.sh and utils/adv_utils.py
    "attack/accv2020": {
        f"{name}_{radius}.{option}": value
        for radius, pgd in ((2, "1/255"), (8, "2/255"))
        for name, size, steps, random in (
            ("fgsm1", f"{radius}/255", 1, True), ("bim10", "eps/10", 10, False), ("pgd10", pgd, 10, True),
            ("mim10", "eps/10", 10, False),
        )
        for option, value in (
            ("threat.epsilon", f"{radius}/255"), ("step.size", size), ("steps", steps), ("random_start", random),
            ("last_iterate", True),
        )
    },
    # jschenthu/GM-Loss, MCAT/README.md and experiments/config; frames have no momentum, no backtracking
    "attack/gm_tpami": {
        "fgsm_01.threat.epsilon": 0.1, "lkd_linf_003.threat.epsilon": 0.03, "lkd_linf_006.threat.epsilon": 0.06,
        "lkd_l2_2.threat.epsilon": 2.0, "lkd_l1_24.threat.epsilon": 24, "lkd_l0_10.threat.epsilon": 10,
        "lkd_l0_10.size": 250, "lkd_linf_003.momentum": 0.9, "lkd_linf_003.factor": 1.1, "ce_linf_003.factor": 1.25,
        "ce_linf_003.size": 0.05, "lkd_frame.threat.epsilon": int(0.1 * 32),
        "lkd_frame._target_": "robustfg.attacks.GradientAttack",
        "lkd_frame.step._target_": "robustfg.attacks.Steepest",
    },
    # carlini/nn_robust_attacks, ysharma1126/EAD_Attack, LTS4/DeepFool, labsix/limited-blackbox-attacks
    "attack/cw": {"searches": 9, "learning_rate": 1e-2, "initial_constant": 1e-3, "early_abort": True},
    "attack/ead": {"searches": 9, "learning_rate": 1e-2, "initial_constant": 1e-3, "beta": 1e-3},
    "attack/deepfool": {"steps": 50, "overshoot": 0.02, "classes": 10},
    "attack/deepfool_linf": {"steps": 50, "overshoot": 0.02, "classes": 10},
    "attack/nes": {"step.decay": 0.9, "samples": 50, "deviation": 1e-3},
    # fra31/sparse-imperceivable-attacks (its l0 without sigma-map: 100 steps, 5 restarts), fra31/sparse-rs
    "attack/pgd_l0": {"step.size": "120000/255"},
    "attack/sparse_rs": {"alpha_init": 0.3},
    # maurapintor/Fast-Minimum-Norm-FMN-Attack, by way of jeromerony/adversarial-library
    **{f"attack/fmn{norm}": {"step_size": 1.0, "change": 0.05, "last_change": 0.001} for norm in ("", "_l0", "_l1")},
    # bethgelab/foolbox 1 (Brendel et al.)
    "attack/boundary": {"along": 0.01, "towards": 0.01, "factor": 1.5, "converged": 1e-7},
    # fra31/auto-attack
    "attack/apgd_ce": {"steps": 100, "rho": 0.75, "momentum": 0.75, "restarts": 1},
    "attack/apgd_t": {"steps": 100, "targets.count": 9, "restarts": 1},
    "attack/fab_t": {"steps": 100, "targets": 9, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9},
    "attack/square": {"queries": 5000, "p_init": 0.8},
    "attack/autoattack": {"autoattack.attacks.square.rescale_schedule": False},
    "attack/autoattack_l1": {
        "autoattack_l1.attacks.apgd_ce.restarts": 5, "autoattack_l1.attacks.apgd_t.targets.count": 5,
        "autoattack_l1.attacks.fab_t.targets": 9, "autoattack_l1.attacks.square.queries": 5000,
    },
    # Engstrom et al. 2019
    "attack/spatial": {"threat.degrees": 30, "threat.shift": "3/32", "angles": 31, "shifts": 5},
    # Liu et al. 2020, Xu et al. 2018, Sun et al. 2022, Ma et al. 2018
    "detector/energy": {"temperature": 1.0},
    "detector/feature_squeezing": {"bits": 5, "window": 2},
    "detector/nearest_neighbours": {"neighbours": 50, "normalise": True},
    "detector/local_intrinsic_dimensionality": {"neighbours": 20},
}  # fmt: skip


@pytest.mark.parametrize("option", THERE)
def test_what_an_option_file_says_is_released_is_what_was_released(option: str) -> None:
    group, _, name = option.rpartition("/")
    file, base = OmegaConf.load(CONF / group / f"{name}.yaml"), OmegaConf.create()
    for entry in file.get("defaults", []):
        if isinstance(entry, str) and "base/" in entry:
            shared, _, place = entry.partition("@")
            above = CONF if shared.startswith("/") else CONF / group
            OmegaConf.update(base, place, OmegaConf.load(above / f"{shared.lstrip('/')}.yaml"))
    stored = OmegaConf.to_container(OmegaConf.merge(base, file))
    alone = isinstance(stored, dict) and set(stored) - {"defaults"} == {name}
    for path, expected in THERE[option].items():
        found = stored[name] if alone and not path.startswith(f"{name}.") else stored
        for part in path.split("."):
            found = found[part]
        assert found == pytest.approx(expected), path
