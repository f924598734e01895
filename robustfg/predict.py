"""robustfg.predict: classify images with a checkpoint, and accept or reject each at a chosen false-positive rate."""

import itertools
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from robustfg.cli.config import CONF, build, plain, register_schemas
from robustfg.cli.errors import discard_stdout, run_plainly, told_plainly
from robustfg.cli.trust import offline, refuse_untrusted
from robustfg.core.errors import UserError
from robustfg.core.text import printable

if TYPE_CHECKING:
    from robustfg.checkpoint import Checkpoint
    from robustfg.classifier import Classifier
    from robustfg.detectors.fitted import Fitted
    from robustfg.prediction import Predictor

register_schemas()

VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
          "--info", "-i", "--experimental-rerun"}  # fmt: skip
"""Hydra's flags that a value follows."""

ADVICE = (
    "Run robustfg.evaluate checkpoint=… detector=likelihood, and give its folder: detectors=outputs/evaluations/RUN"
)


KEPT = Path("robustness", "detectors.pt")
"""Where an evaluation with detectors keeps them, below its folder."""


def main() -> None:
    """Takes the paths off the command line, so that Hydra sees words of its own only, then composes and predicts."""
    options, paths = split(sys.argv[1:])
    sys.argv[1:] = options
    if {"-m", "--multirun"} & {*options}:
        raise SystemExit("robustfg: robustfg.predict has no multirun; name all images at once")
    if "COMP_LINE" in os.environ:  # a shell asks Hydra how its last word may go on
        program, *words = os.environ["COMP_LINE"].split(" ")
        os.environ["COMP_LINE"] = " ".join([program, *split(words[:-1])[0], *words[-1:]])

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
    def composed(config: DictConfig) -> None:
        with told_plainly(config):
            given = plain(config)
            raise SystemExit(predict(given, [*given["images"], *paths]))

    run_plainly("predict", composed)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's words and the paths of a command line.

    Paths are ``-``, everything after ``--``, every other word without ``=``, and every file that exists, so that no
    file found by a pattern of the shell can set an option.
    """
    options: list[str] = []
    paths: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            paths += rest
        elif word.startswith("-") and word != "-":
            options += [word, *itertools.islice(rest, 1 if word in VALUED else 0)]
        elif os.path.lexists(word) or not ("=" in word or word.startswith(("+", "~"))):
            paths.append(word)
        else:
            options.append(word)
    return options, paths


def predict(config: dict[str, Any], names: Sequence[str]) -> int:
    """Writes a row for every image, and a summary on stderr.

    Args:
        config: the resolved config as plain containers.
        names: files and folders, and ``-`` for paths on stdin.

    Returns:
        The exit status: 0 where all images were classified, 2 where some failed, 1 where all did.
    """
    if config["checkpoint"] is None:
        raise UserError("set checkpoint=…, such as checkpoint=outputs/birds-gm/RUN/checkpoints/best.ckpt")
    if not names:
        raise UserError("no image is named; add files or folders, or - to read paths from stdin")
    # Only now, so that --help and --cfg need none of it.
    from robustfg.prediction import Tally, kept, opened, writer_of

    writer, to = writer_of(config["format"], config["to"]), config["to"]
    tally = Tally()
    before = signal.signal(signal.SIGTERM, _stop) if threading.current_thread() is threading.main_thread() else None
    try:
        with opened(to) as stream:
            predictor = load(
                config["checkpoint"],
                detectors=config["detectors"],
                fpr=config["fpr"],
                top=config["top"],
                trust=config["trust"],
                device=config["device"],
                batch_size=config["batch_size"],
                num_workers=config["num_workers"],
            )
            write = writer(stream, predictor.columns)
            for row in predictor(names, sys.stdin.buffer):
                write(row.cells())
                tally.count(row)
        status = tally.status
    except BrokenPipeError:  # the reader has seen enough, such as head
        discard_stdout()
        status = 141
    except _Terminated:
        say(f"stopped{kept(to)}")
        status = 143
    except KeyboardInterrupt:
        say(f"interrupted{kept(to)}")
        status = 130
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise UserError(f"a loader process died; too little memory? Set num_workers=0{kept(to)}") from error
    except OSError as error:
        if to is not None or error.filename is not None:
            raise
        discard_stdout()
        raise UserError(f"the rows cannot be written to stdout: {error.strerror}") from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    say(tally.summary())
    return status


class _Terminated(BaseException):
    """SIGTERM."""


def _stop(*_: Any) -> None:
    raise _Terminated


def load(
    checkpoint: str | Path,
    *,
    detectors: str | Path | None = None,
    fpr: float = 0.05,
    top: int = 1,
    trust: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> "Predictor":
    """The classifier of a checkpoint with its detectors, ready for image files: ``load(path)(["a.jpg", "folder"])``.

    Without fitted detectors the loss's own anomaly score is given, and nothing is accepted or rejected.

    Args:
        checkpoint: best.ckpt or last.ckpt of a run.
        detectors: file that an evaluation with detectors wrote, or its folder; None for the one in the checkpoint's
            run, if any.
        fpr: share of unattacked images of the known classes that may be rejected, by every detector.
        top: how many classes a row names.
        trust: packages besides robustfg whose classes the checkpoint may name.
        device: where the network runs; ``"auto"`` for an accelerator where there is one.
        batch_size: images per forward pass; None for that of the checkpoint's evaluation.
        num_workers: loader processes; None for one per core, at most 8.
    """
    from robustfg.checkpoint import Checkpoint
    from robustfg.cli import assemble, session
    from robustfg.detectors import Watched
    from robustfg.prediction import OwnScore, Predictor, device_of, refuse_numbers

    if not 0 < fpr < 1:
        raise UserError(f"fpr must be in (0, 1), got {fpr}")
    read = Checkpoint.read(checkpoint)
    session.begin(read.config["seed"])
    classifier = assemble.restored_of(read, tuple(trust))
    found = device_of(device)
    refuse_numbers(top=top, classes=len(read.classes), batch_size=batch_size, num_workers=num_workers)
    fitted = fitted_of(read, classifier, detectors, tuple(trust))
    watching = {"anomaly": OwnScore(classifier.loss)} if fitted is None else fitted.detectors
    data = read.config["data"]
    return Predictor(
        network=Watched(classifier, watching),
        classes=read.classes,
        detectors=list(watching),
        transform=assemble.fit_square_of(data),
        thresholds={} if fitted is None else {name: _tau(fitted, name, fpr) for name in watching},
        top=top,
        batch_size=(data.get("eval_batch_size") or data["batch_size"]) if batch_size is None else batch_size,
        num_workers=min(8, os.cpu_count() or 1) if num_workers is None else num_workers,
        device=found,
    )


def _tau(fitted: "Fitted", name: str, fpr: float) -> float:
    """The threshold. Raises ``UserError`` where the calibration is too small to reject anything at this rate."""
    tau, n = fitted.tau(name, fpr), len(fitted.calibration[name])
    if tau == math.inf:
        raise UserError(f"fpr must be at least 1/{n + 1}, since {name} is calibrated on {n} samples; got {fpr:g}")
    return tau


def fitted_of(
    checkpoint: "Checkpoint", classifier: "Classifier", given: str | Path | None, trust: tuple[str, ...]
) -> "Fitted | None":
    """The detectors fitted to a checkpoint's classifier; None, told on stderr, where no file of them is found.

    Raises:
        UserError: if the file that was given belongs to another classifier.
    """
    from robustfg.detectors.fitted import Fitted
    from robustfg.evaluation.fingerprint import weights_sha256

    def make(node: Mapping[str, Any], option: str) -> Any:
        refuse_untrusted(node, trust)
        return build(offline(node), option)

    run_folder = checkpoint.path.absolute().parent.parent
    path = run_folder / KEPT if given is None else given_file(Path(given).expanduser())
    if given is None and not path.exists():
        say(f"no thresholds, since there is no {path}: nothing is accepted or rejected. {ADVICE}")
        return None
    fitted = Fitted.read(path, make)
    watched = {"weights_sha256": weights_sha256(classifier), "head": checkpoint.config["loss"].get("head")}
    if differing := [key for key, value in watched.items() if fitted.about.get(key) != value]:
        told = f"{path} was fitted to another classifier than {checkpoint.path} ({differing[0]} differs)"
        if given is not None:
            raise UserError(f"detectors={told}. {ADVICE}")
        say(f"no thresholds: {told}. {ADVICE}")
        return None
    return fitted


def given_file(place: Path) -> Path:
    """The file of detectors that was given itself, or by the folder of a run or evaluation, or by its robustness/."""
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"detectors={place}: no such file or folder; evaluations lie under outputs/evaluations")
        return place
    for path in (place / KEPT, place / KEPT.name):
        if path.is_file():
            return path
    raise UserError(f"detectors={place} holds no {KEPT.name}; evaluations lie under outputs/evaluations. {ADVICE}")


def say(text: str) -> None:
    """Prints a line on stderr; stdout holds rows only."""
    print(f"robustfg: {printable(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
