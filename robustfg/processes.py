"""The processes that work on one command together, as their environment shows them before they have spoken."""

import functools
import multiprocessing
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime

from robustfg.errors import UserError

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
_NAME, _STARTER = "ROBUSTFG_RUN_NAME", "ROBUSTFG_STARTED_BY"  # inherited by the ranks that Lightning starts
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
        by_lightning = not is_first() and os.environ.get(_STARTER) == str(pid)
        if by_lightning or "TORCHELASTIC_RUN_ID" in os.environ:
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
