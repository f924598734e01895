"""Running the commands: as real processes, or in this one where only their outcome matters."""

import signal

import warm
from hydra import compose, initialize_config_dir

from robustfg.cli.config import CONF, plain, register_schemas

register_schemas()
NAMES = {"data": "digits", "model": "tiny", "loss": "gm", "training": "standard"}
QUIET = "trainer.enable_progress_bar=false"


def start(command, *overrides, cwd=None, start_new_session=False, **environment):
    options = {"cwd": cwd, "start_new_session": start_new_session, "environment": environment}
    return warm.start(f"robustfg.{command}", *map(str, overrides), QUIET, **options)


def obey_interrupts():
    """A background job of a shell ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(process):
    try:
        process.output, process.errors = process.communicate()
    finally:
        process.kill()
    return process


def run(command, *overrides, **options):
    return finished(start(command, *overrides, **options))


def config_of(command, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(command, overrides=["run_name=r", QUIET, *map(str, overrides)])
    return plain(composed) | {"names": NAMES}
