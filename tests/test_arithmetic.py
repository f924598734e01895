"""Full fp32 inside, and whatever the user has set, in either of torch's two sets of words, outside."""

from contextlib import suppress

import pytest
import torch
from torch import backends

from robustfg.core.precision import UNITS, _as_it_is, exact_arithmetic


def told():
    """All that torch tells about the precision of fp32; it refuses some of it once both sets of words were used."""
    asked = {
        "matmul": torch.get_float32_matmul_precision,
        "cublas": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn": lambda: backends.cudnn.allow_tf32,
    }
    for unit in ("", *UNITS):
        place = backends
        for part in filter(None, unit.split(".")):
            place = getattr(place, part, None)
        if hasattr(place, "fp32_precision"):
            asked[unit] = lambda place=place: place.fp32_precision
    found = {}
    for name, ask in asked.items():
        found[name] = "refused"
        with suppress(RuntimeError):
            found[name] = ask()
    return found


NEWER = pytest.mark.skipif(not hasattr(backends, "fp32_precision"), reason="this torch has only the older words")


@pytest.fixture(autouse=True)
def _as_it_was():
    restore = _as_it_is()
    yield
    if hasattr(backends, "fp32_precision"):
        backends.fp32_precision = "none"
    restore()


@pytest.mark.parametrize(
    "user",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(backends.cudnn, "allow_tf32", False),
        pytest.param(lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"), marks=NEWER),
        pytest.param(lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"), marks=NEWER),
        pytest.param(lambda: setattr(backends, "fp32_precision", "tf32"), marks=NEWER),
    ],
    ids=["nothing", "high", "medium", "cublas", "cudnn", "newer matmul", "newer convolution", "newer everything"],
)
def test_precision_is_full_inside_and_as_it_was_outside(user):
    user()
    before = told()
    inside = {}

    def interrupted():
        with exact_arithmetic():
            inside.update(told())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert told() == before
    assert (inside["matmul"], inside["cublas"], inside["cudnn"]) == ("highest", False, False)
    assert not {inside[unit] for unit in UNITS if unit in inside} - {"none", "ieee"}


def test_autocast_and_inference_mode_end_inside():
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with exact_arithmetic():
            leaf = torch.ones(2, 2, requires_grad=True)
            product = leaf @ leaf
            product.sum().backward()
        assert torch.is_inference_mode_enabled()
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert product.dtype == torch.float32
    assert leaf.grad is not None
