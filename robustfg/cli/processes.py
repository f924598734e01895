"""The processes that work on one command together, as their environment shows them before they have spoken."""

import functools
import multiprocessing
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from robustfg.core.errors import UserError

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
_NAME, _STARTER = "ROBUSTFG_RUN_NAME", "ROBUSTFG_STARTED_BY"  # inherited by the ranks that Lightning starts
_CLUSTERS = ("MASTER_ADDR", "SLURM_JOB_ID", "LSB_JOBID", "OMPI_COMM_WORLD_RANK", "KUBERNETES_PORT")
CROWD = 4  # processes per core that are still taken for meant
_ending = threading.Lock()


def is_first() -> bool:
    """Whether this is the process that writes for all: rank 0, or the one that starts the ranks."""
    return not any(int(os.environ.get(name) or 0) for name in _RANKS)


@functools.cache
def default_name() -> str:
    """The name of a run that is given none, the same on all ranks: the time, and characters that no other run has.

    Raises:
        UserError: where ranks are started from outside and have no name in common.
    """
    environment = os.environ
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_ID" in environment:
        return f"slurm-{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}"
    if environment.get("TORCHELASTIC_RUN_ID", "none") != "none":
        return f"torchrun-{environment['TORCHELASTIC_RUN_ID']}"
    from_outside = "TORCHELASTIC_RUN_ID" in environment and int(environment.get("WORLD_SIZE") or 1) > 1
    if from_outside or not (is_first() or _NAME in environment):
        raise UserError("set run_name=…, since processes that are started one by one would take a name each")
    if is_first():
        environment[_NAME] = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(3)}"
    return environment[_NAME]


def is_lasting(name: str) -> bool:
    """Whether the same command has the same name when it is given again: it was not made up by this one."""
    return os.environ.get(_NAME) != name


def refuse_impossible_devices(trainer: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for devices that this machine does not have, and for far more processes than cores.

    Args:
        trainer: the trainer's node.
    """
    import torch  # only here, so that --help needs none of it

    devices, accelerator, nodes = (trainer.get(key) for key in ("devices", "accelerator", "num_nodes"))
    if accelerator in ("gpu", "cuda") and not torch.accelerator.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: no GPU is found here; set trainer.accelerator=cpu")
    if accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available()):
        count: Any = 1 if devices == "auto" else devices
        if isinstance(count, bool) or not str(count).isdecimal() or int(count) < 1:
            raise UserError(f"trainer.devices={devices}: on a CPU it is a number of processes, at least 1")
        if int(count) > CROWD * (os.cpu_count() or 1):
            raise UserError(f"trainer.devices={devices}: this machine has {os.cpu_count()} cores; set at most as many")
    if isinstance(nodes, int) and nodes > 1 and not any(name in os.environ for name in _CLUSTERS):
        raise UserError(
            f"trainer.num_nodes={nodes}: nothing says where the other nodes are; start with srun or torchrun, or set "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )


def refuse_other_ranks(trainer: Any) -> None:
    """Raises ``UserError`` where processes were started from outside, but not those that the trainer counts on.

    It would wait for those that are missing, or each would train alone in the same folder.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

    environment = trainer._accelerator_connector.cluster_environment
    if not environment.creates_processes_externally:
        return
    asked, slurm = trainer.num_devices * trainer.num_nodes, isinstance(environment, SLURMEnvironment)
    known = not isinstance(environment, LightningEnvironment)
    started = environment.world_size() if known else int(os.environ.get("WORLD_SIZE") or asked)
    who = "SLURM" if slurm else "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "the environment"
    own = ", or SLURM_JOB_NAME=bash in the environment so that the command starts its own" if slurm else ""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(f"trainer.strategy starts processes inside those of {who}; set trainer.strategy=ddp{own}")
    if started != asked:
        raise UserError(
            f"trainer.devices={trainer.num_devices} and trainer.num_nodes={trainer.num_nodes} ask for {asked} "
            f"processes, but {who} has started {started}; make them equal{own}"
        )
    if slurm and started > 1 and "SLURM_STEP_ID" not in os.environ:
        raise UserError(f"SLURM_NTASKS={started}, but srun has not started this process; begin the command with srun")


class Starter:
    """Ends this process soon after the one that started it as a rank has died.

    Attributes:
        released: True while the starter may end, since this process has nothing more to do with it.
    """

    def __init__(self) -> None:
        self.released = False
        self._died = self._question()
        if self._died is not None:
            threading.Thread(target=self._watch, daemon=True, name="starter").start()
        elif is_first():
            os.environ[_STARTER] = str(os.getpid())

    @staticmethod
    def _question() -> Callable[[], bool] | None:
        """Whether the starter has died; None where it may, such as a shell."""
        parent, pid = multiprocessing.parent_process(), os.getppid()
        if parent is not None:
            return lambda: not parent.is_alive()
        if not is_first() and _STARTER in os.environ:  # by Lightning; it may have died before this line
            return lambda: os.getppid() != int(os.environ[_STARTER])
        if "TORCHELASTIC_RUN_ID" in os.environ:
            return lambda: os.getppid() != pid
        return None

    def _watch(self) -> None:
        assert self._died is not None
        while self.released or not self._died():
            time.sleep(0.5)
        end_now("the process that started this one has died, so this one ends too")


@functools.cache
def starter() -> Starter:
    """Of this process; watched from the first call on."""
    return Starter()


def end_now(text: str | None) -> None:
    """Ends the process with a last line, if any, and exit code 1 from any thread, whatever the others wait for."""
    _ending.acquire()  # never released: one thread speaks
    sys.stdout.flush()
    if text is not None:
        sys.stderr.write(f"\nrobustfg: {text}\n")
    sys.stderr.flush()
    os._exit(1)
