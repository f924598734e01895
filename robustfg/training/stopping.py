"""Ctrl-C, SIGTERM and SLURM's signal as a wish, which training looks at where its state is whole."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException


class RequeueException(SIGTERMException):
    """SLURM's signal before the time limit: stop, and put the job back into its queue."""


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """The signal by which SLURM asks for that; None elsewhere."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal if "SLURM_JOB_ID" in os.environ else None


def requeue() -> str | None:
    """Puts the SLURM job of this process back into its queue. Returns what went wrong, if anything."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    words = ["scontrol", "requeue", job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        return f"{' '.join(words)} failed ({' '.join(reason.split())})"
    return None


class StopSignals:
    """Notes Ctrl-C, SIGTERM and SLURM's signal instead of breaking off; a second Ctrl-C raises ``KeyboardInterrupt``.

    Attributes:
        told: number of the signal that asked to stop; None before.
    """

    def __init__(self) -> None:
        self.told: int | None = None
        self._numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
        self._interrupts, self._process = 0, 0
        self._launched: pl.Trainer | None = None

    @contextmanager
    def heard(self, trainer: pl.Trainer) -> Iterator[None]:
        """Listens while the block runs, also in the processes that ``trainer`` starts; then all is as it was before.

        Lightning's own handlers stay away meanwhile: they start a collective inside the handler, which hangs when every
        process gets the signal, and on SLURM they write a checkpoint wherever training stands.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.told, self._interrupts, self._launched = None, 0, trainer
        lightnings = trainer._signal_connector
        again = requeue_signal(trainer)
        self._numbers = (signal.SIGINT, signal.SIGTERM, *(() if again is None else (again,)))
        previous = {number: signal.getsignal(number) for number in self._numbers}
        lightnings.register_signal_handlers = _left_out  # type: ignore[method-assign]
        self._listen()
        try:
            yield
        finally:
            self._process, self._launched = 0, None
            del lightnings.register_signal_handlers
            for number, handler in previous.items():
                signal.signal(number, handler)

    def listen_if_spawned(self) -> None:
        """Listens in a process that was spawned within ``heard``."""
        if self._process not in (0, os.getpid()):
            self._launched = None
            self._listen()

    @property
    def requeues(self) -> bool:
        """Whether it was SLURM's signal."""
        return self.told not in (None, signal.SIGINT, signal.SIGTERM)

    def tell(self, *, requeue: bool) -> None:
        """Notes that another process was told to stop."""
        if requeue and not self.requeues:
            self.told = self._numbers[-1]
        elif self.told is None:
            self.told = signal.SIGTERM

    def _listen(self) -> None:
        self._process = os.getpid()
        for number in self._numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's process, which goes on until training has stopped
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self.told is not None:
            return
        self.told = number
        launcher = None if self._launched is None else self._launched.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        if (
            number == signal.SIGINT and getattr(rank_zero_only, "rank", 0) == 0
        ):  # written past Python's buffers, which may be in use
            os.write(2, b"\nrobustfg: stopping where the run can be continued; Ctrl-C again ends at once\n")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_launched": None}


def _left_out() -> None:
    """In the place of what registers Lightning's handlers; can be pickled."""
