"""What an attack asks of the samples it is handed and of the model's answers."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from robustfg.core.errors import UserError
from robustfg.core.types import Output, logits_of


def classes_of(image: Tensor, label: Tensor, index: Tensor | None = None) -> int:
    """Checks samples, and says how many classes a model must know at least. Makes the host wait once.

    Args:
        image: ``(B, C, H, W)`` float32 or float64 in [0, 1].
        label: ``(B,)`` int64, classes from 0.
        index: ``(B,)`` int64.

    Raises:
        UserError: for anything else.
    """
    for name, given in {"images": image, "labels": label, "sample ids": index}.items():
        if not (isinstance(given, Tensor) or (given is None and name == "sample ids")):
            raise UserError(f"{name} must be a torch.Tensor, got {_kind(given)}; {_MADE[name]}")
    shapes = tuple(image.shape), tuple(label.shape)
    if image.dim() != 4 or label.shape != image.shape[:1]:
        raise UserError(
            f"need images (B, C, H, W) and labels (B,), got {shapes[0]} and {shapes[1]}{_shape_hint(image, label)}"
        )
    if index is not None and index.shape != label.shape:
        raise UserError(f"need one sample id per image, got {tuple(index.shape)} for {shapes[1]}")
    if image.dtype == torch.uint8:
        raise UserError("images must be float32 or float64 in [0, 1], got torch.uint8; take images / 255")
    if image.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"images must be float32 or float64, got {image.dtype}; half precision belongs inside the model "
            "(engine.autocast, trainer.precision=bf16-mixed): its rounding would exceed the budget"
        )
    for name, whole in {"labels": label, "sample ids": index}.items():
        if whole is not None and whole.dtype != torch.int64:
            raise UserError(f"{name} must be int64, got {whole.dtype}")
        if whole is not None and whole.device != image.device:
            raise UserError(f"{name} must lie on the images' device {image.device}, got {whole.device}")
    if min(image.shape[1:3]) > 4 and image.shape[3] in (1, 3):
        raise UserError(f"images must be (B, C, H, W), got {shapes[0]}; take images.permute(0, 3, 1, 2)")
    if not image.numel():
        return 0
    ends = [image.amin(), image.amax(), label.amin(), label.amax()]
    low, high, least, largest = torch.stack([end.double() for end in ends]).tolist()
    if not (low >= 0 and high <= 1):
        raise UserError(f"images must lie in [0, 1] (normalise inside the model), got [{low!r}, {high!r}]")
    if least < 0:
        raise UserError(f"labels must be classes from 0, got {least:.0f}")
    return int(largest) + 1


_MADE = {
    "images": "such as torch.stack([torchvision.transforms.functional.to_tensor(picture) for picture in pictures])",
    "labels": "such as torch.as_tensor(labels, dtype=torch.int64)",
    "sample ids": "such as torch.arange(len(labels))",
}
"""How to come by the tensors."""


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")


def _shape_hint(image: Tensor, label: Tensor) -> str:
    """What is most likely wrong with shapes that do not fit."""
    if image.dim() == 3:
        return "; a single image needs a batch dimension: image[None]"
    if image.dim() == 4 and label.dim() == 2 and len(label) == len(image):
        return "; labels are class numbers, not one-hot rows: labels.argmax(1)"
    if label.dim() == 0:
        return "; a single label needs a batch dimension: label[None]"
    return ""


def checked(answer: Output | Tensor, images: int, classes: int = 0) -> Output | Tensor:
    """A model's answer, if its logits are ``(images, K)`` with K >= 2 and at least ``classes``; reads no values.

    Raises:
        UserError: for anything else.
    """
    logits = answer.logits if isinstance(answer, Output) else answer
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model must return logits (B, K) or an Output that holds them, got {type(logits).__name__}"
        )
    known = logits.shape[1] if logits.dim() == 2 else 0
    if len(logits) != images or known < 2 or not logits.is_floating_point():
        got = f"{logits.dtype} {tuple(logits.shape)}"
        raise UserError(f"the model must return logits (B, K) of two classes or more, got {got} for {images} images")
    if known < classes:
        raise UserError(f"labels must be classes 0 to {known - 1} of the model, got {classes - 1}")
    return answer


def warn_of_answers(logits: Tensor) -> None:
    """Says what an attacker must know of a model that answers with probabilities, or with numbers that are none.

    A logit of -inf is a class that the model leaves out, which is nothing to be warned of.
    """
    if bool((logits >= 0).all() & ((logits.sum(1) - 1).abs() < 1e-4).all()):
        warnings.warn(
            "the model seems to return probabilities: attacks need logits (cross-entropy on probabilities is "
            "weak); take the softmax out of the model",
            stacklevel=3,
        )
    broken = ~((logits < torch.inf).all(1) & (logits > -torch.inf).any(1))
    if bool(broken.any()):
        warnings.warn(
            f"the model's logits of {int(broken.sum())} of {len(logits)} images are NaN or infinite: NaN counts as "
            "wrong, and where they are infinite the attack has no gradient",
            stacklevel=3,
        )


@torch.no_grad()
def steady(ask: Callable[[Tensor], Output | Tensor], image: Tensor, share: float = 1e-4) -> Tensor:
    """Whether the logits of every image agree, ``(B,)``.

    The model is asked twice, in another order, beside another image, and with gradients, as a search asks.

    Args:
        ask: a model in eval mode.
        image: ``(B, C, H, W)``, not empty.
        share: of the logits' length that they may differ by.
    """

    def logits(picture: Tensor) -> Tensor:
        return logits_of(ask(picture)).detach().to(torch.float64, copy=True)

    beside = torch.cat([1 - image[:1], image])
    answers = [logits(image.clone()), logits(image.clone()), logits(image.flip(0)).flip(0), logits(beside)[1:]]
    with torch.enable_grad():
        answers.append(logits(image.clone().requires_grad_().clone()))  # no leaf, which cannot be written over
    found = torch.stack(answers)
    found = found.masked_fill(found == -torch.inf, 0)  # classes left out
    spread = (found - found[0]).norm(dim=2).amax(0)
    agree: Tensor = spread <= (share * found[0].norm(dim=1)).clamp_min(1e-12)
    return agree | found[0].isnan().any(1)  # which is reported elsewhere


def warn_of_moods(agree: Tensor) -> None:
    """Says that a model does not always answer alike, ``agree`` ``(n,)`` of some images."""
    if not bool(agree.all()):
        warnings.warn(
            f"the model's logits of {int((~agree).sum())} of {len(agree)} images differ when it is asked again, beside "
            "other images or with gradients: a search learns little from it, and what fools it now may not fool it "
            "later",
            stacklevel=3,
        )


def warn_of_attempts(dead: Tensor, margin: Tensor) -> None:
    """Says what makes the images of an attack prove little.

    Args:
        dead: ``(B,)`` bool, a first gradient that was all zero or not finite.
        margin: ``(B,)`` decision margins at the images found; NaN where nobody looked.
    """
    if bool(dead.any()):
        warnings.warn(
            f"the first gradient of {int(dead.sum())} of {len(dead)} images is zero or not finite, so this attack "
            "proves little: the model detaches, rounds or saturates; try the margin objective, attacks.differentiable "
            "or Square",
            stacklevel=3,
        )
    if bool((margin == torch.inf).any()):
        warnings.warn(
            f"no wrong class has a finite logit at {int((margin == torch.inf).sum())} of {len(margin)} images: they "
            "count as right whatever the attack does",
            stacklevel=3,
        )
