"""The attacked model as other libraries are given it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustfg.attacks.batch.input_gradient import gradient_of
from robustfg.attacks.runtime.engine import Run
from robustfg.core.types import logits_of


class Witness(nn.Module):
    """A prepared model that answers logits only, owns no parameters, and counts what it is asked.

    Gradients reach the image and nothing else: whatever the library differentiates, no ``.grad`` is left anywhere. No
    second derivatives.

    Args:
        run: the model.
        clean: ``(B, C, H, W)`` the attacked images; other dtypes are cast to theirs for the model.
    """

    def __init__(self, run: Run, clean: Tensor) -> None:
        super().__init__()
        self._run, self._clean = run, clean
        self._whole, self._rows = [0, 0], [0, 0]
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(n, K)`` in the image's dtype."""
        self.count(0, len(image))
        if torch.is_grad_enabled() and image.requires_grad:
            logits: Tensor = _Pass.apply(image, self)
            return logits
        with torch.no_grad():
            return self.answer(image).to(image.dtype)

    def answer(self, image: Tensor) -> Tensor:
        """Logits ``(n, K)`` as the model gives them, uncounted."""
        return logits_of(self._run(image.to(self._clean)))

    def count(self, kind: int, rows: int) -> None:
        """Notes a forward (0) or backward (1) pass of ``rows`` images."""
        if rows == len(self._clean):
            self._whole[kind] += 1
        else:
            self._rows[kind] += rows

    def spent(self) -> tuple[Tensor, Tensor]:
        """Forward and backward passes of every sample, ``(B,)`` int64 each.

        A pass of the whole batch counts once for each sample. Of other passes only the number of images is known, not
        whose they are: they are spread evenly, so sums are exact and single samples are means.
        """
        forwards, backwards = (self._spread(kind) for kind in (0, 1))
        return forwards, backwards

    def _spread(self, kind: int) -> Tensor:
        share, left = divmod(self._rows[kind], len(self._clean))
        place = torch.arange(len(self._clean), device=self._clean.device)
        return self._whole[kind] + share + (place < left).long()


class _Pass(torch.autograd.Function):
    """A forward pass whose backward pass ends at the image."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, witness: Witness) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = image.detach().requires_grad_()
            ctx.logits = witness.answer(ctx.leaf)
        ctx.witness = witness
        return ctx.logits.detach().to(image.dtype)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.witness.count(1, len(gradient))
        with torch.enable_grad():
            value = (ctx.logits * gradient).sum()
        return gradient_of(value, ctx.leaf, retain_graph=True), None
