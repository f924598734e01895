"""Covariances of class-conditional Gaussians, one a class or one for all, and the identity."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from robustfg.losses.gaussian import centred, centred_logits, gaussian_logits


class Covariance(nn.Module, ABC):
    """Covariances Sigma_k of K Gaussians in D dimensions.

    Args:
        num_classes: K.
        dim: D.
        tied: one covariance for all classes.

    Attributes:
        count: number of covariances, 1 or K.
        needed: samples below which an estimate of one is singular.
    """

    needed = 1

    def __init__(self, *, num_classes: int, dim: int, tied: bool) -> None:
        super().__init__()
        self.num_classes, self.dim, self.tied = num_classes, dim, tied
        self.count = 1 if tied else num_classes

    def exponents(self, embedding: Tensor, means: Tensor) -> Tensor:
        """-1/2 (x - mu_k)' Sigma_k^-1 (x - mu_k) for every sample and class, ``(B, K)``.

        Args:
            embedding: ``(B, D)``.
            means: ``(K, D)``.
        """
        # Never in half precision: squared distances overflow it.
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.to(means.dtype)
            if self.tied:  # all classes live in one whitened space
                near = centred(embedding, means)  # whitening rounds what is far from zero
                return centred_logits(*(self.whitened(rows) for rows in near))
            return self.exponents_by_class(embedding, means)

    @abstractmethod
    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        """``exponents`` where every class has a covariance of its own."""

    @abstractmethod
    def whitened(self, rows: Tensor) -> Tensor:
        """Rows ``(n, D)`` in the space where the tied covariance is the identity."""

    @abstractmethod
    def matrices(self) -> Tensor:
        """Sigma, ``(count, D, D)``."""

    @abstractmethod
    def log_determinants(self) -> Tensor | None:
        """Logarithms of |Sigma|, ``(count,)``; None where it is 0 by definition."""

    @abstractmethod
    def outer(self, rows: Tensor) -> Tensor:
        """The sum over rows ``(n, D)`` of x x', as much of it as is needed: ``(D, D)``, or ``(D,)`` its diagonal."""

    @abstractmethod
    def become(self, spread: Tensor) -> None:
        """Sets the covariances from estimates: ``(count, *)``, each as ``outer`` gives it."""

    def linear(self, means: Tensor) -> Tensor | None:
        """Weights ``(K, D)`` of the linear layer that the exponents are up to bias and a constant of the sample.

        None where there is no such layer, because the classes' covariances differ.
        """
        if not self.tied:
            return None
        weight: Tensor = torch.linalg.solve(self.matrices()[0], means.t()).t()
        return weight


class Identity(Covariance):
    """Sigma_k = I, without parameters."""

    def __init__(self, *, num_classes: int, dim: int) -> None:
        super().__init__(num_classes=num_classes, dim=dim, tied=True)

    def exponents_by_class(self, embedding: Tensor, means: Tensor) -> Tensor:
        return gaussian_logits(embedding, means)

    def whitened(self, rows: Tensor) -> Tensor:
        return rows

    def matrices(self) -> Tensor:
        return torch.eye(self.dim)[None]

    def log_determinants(self) -> None:
        return None

    def outer(self, rows: Tensor) -> Tensor:
        return rows.square().sum(0)

    def become(self, spread: Tensor) -> None:
        del spread  # is the identity in any case

    def linear(self, means: Tensor) -> Tensor:
        return means
