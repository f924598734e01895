"""Finding other libraries, their attacks and their options, with errors that say what there is."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib import metadata
from math import inf
from types import ModuleType

from robustfg.attacks.threats.base import Threat, step_length
from robustfg.core.errors import UserError

ORDERS = {"linf": inf, "l2": 2, "l1": 1}
LENGTHS = ("steps", "max_iter", "n_iter", "max_iterations", "num_steps")


def version(package: str, wanted: str) -> str:
    """Of an installed package. Raises ``UserError`` where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise UserError(f"{package} is not installed: pip install {wanted}") from None


def load(module: str, package: str, wanted: str) -> ModuleType:
    """Imports a library. Raises ``UserError`` that says what to install."""
    version(package, wanted)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{package} cannot be imported ({error}): pip install {wanted}") from error


def chosen(name: str, known: Iterable[str], library: str) -> str:
    """The name, if the library has it. Raises ``UserError`` with the nearest names."""
    names = sorted(known)
    if name not in names:
        lower = {other.lower(): other for other in names}
        near = [lower[match] for match in get_close_matches(name.lower(), lower, n=5, cutoff=0.4)]
        raise UserError(f"{library} has no attack {name!r}; near: {', '.join(near or names)}")
    return name


def refuse_other_norm(name: str, threat: Threat, library: str) -> None:
    """Raises ``UserError`` if an attack's name says another norm than the threat model."""
    said = [norm for norm in ("l0", *ORDERS) if norm in name.lower()]
    if said and threat.norm not in said:
        raise UserError(f"{library} {name} is an {said[0]} attack, the threat model is {threat.norm}")


def length(call: Callable[..., object], options: Mapping[str, object]) -> int:
    """Steps or queries that a call takes: as given, or its default; 0 where it names none."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(call).parameters.items()}
    for name in LENGTHS:
        value = options.get(name, defaults.get(name))
        if isinstance(value, int):
            return value
    return 0


def arguments(
    call: Callable[..., object],
    options: Mapping[str, object],
    *,
    threat: Threat,
    title: str,
    given: Mapping[str, object],
    decided: Mapping[str, object],
) -> dict[str, object]:
    """Arguments for a library's call.

    Args:
        call: what is called.
        options: the user's, whose lengths may be texts.
        threat: gives ``eps`` its meaning.
        title: for messages.
        given: defaults of ours, for arguments that the call takes and the user did not set.
        decided: likewise, but what the threat model decides: the user may not set it.
    """
    parameters = inspect.signature(call).parameters
    taken = [name for name in options if name in decided]
    if taken:
        raise UserError(f"{title}: options.{taken[0]} is the threat model's; set threat")
    unknown = [name for name in options if name not in parameters]
    if unknown:
        free = [name for name in parameters if name not in decided]
        raise UserError(f"{title} has no option {unknown[0]!r}; it has {', '.join(free)}")
    ours = {name: value for name, value in {**given, **decided}.items() if name in parameters}
    return ours | {name: number(value, threat.radius) for name, value in options.items()}


def number(value: object, radius: float) -> object:
    """A length such as ``eps/4`` or ``2/255`` as a number; anything else as it is."""
    if isinstance(value, str):
        try:
            return step_length(value, radius)
        except UserError:
            return value
    return value
