"""The Gaussian-mixture loss.

Wan et al., "Rethinking Feature Distribution for Loss Functions in Image Classification" (CVPR 2018) and "Shaping Deep
Feature Space towards Gaussian Mixture for Visual Classification" (TPAMI 2023).
"""

from collections.abc import Callable

from torch import Tensor, nn

from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.types import Output
from robustfg.losses.base import Embedding, LossModule, Survey
from robustfg.losses.class_means import ClassMeans
from robustfg.losses.covariance import Covariance, Identity
from robustfg.losses.explain import class_activation
from robustfg.losses.gaussian import margin_cross_entropy
from robustfg.losses.means import Drawn, InitialMeans, follow
from robustfg.losses.priors import Priors, Uniform
from robustfg.losses.ramp import Ramp


class GaussianMixture(LossModule):
    """Classes are Gaussians around means; a sample belongs to the likeliest.

    With the squared Mahalanobis distance m_k and D_k = m_k + log|Sigma_k| - 2 log p(k), the logits are -D_k/2: the log
    joint density up to a constant. The classification loss adds (margin / 2) m_y to the true class's D_y / 2 before
    the softmax; the likelihood loss is (m_y + log|Sigma_y|) / 2: L = L_cls + likelihood * L_lkd.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes K.
        embedding_dim: size D of a linear layer before the mixture; None to use the pooled feature.
        covariance: makes the covariances from ``num_classes`` and ``dim``.
        priors: makes the class priors from ``num_classes``.
        initial_means: where the means begin. The survey ``"class_means"`` puts them where the training set's features
            are, and counts the priors; ``"class_gaussians"`` sets the covariances, too.
        means_momentum: means are moving averages of the class means of batches and have no gradient; 0.9 keeps that
            share of the old ones. None: means are learned.
        margin: alpha, the margin on the true class's distance.
        margin_start: share of ``margin`` at epoch 0.
        likelihood: lambda, the weight of the likelihood loss.
        likelihood_start: share of ``likelihood`` at epoch 0.
        ramp_epochs: epochs over which both grow linearly to their full value.
        likelihood_factor: of m + log|Sigma| in the likelihood loss. The paper's density has 1/2; the authors' PyTorch
            releases use 1, which doubles lambda.
        likelihood_over_all_classes: average over all classes instead of taking the true one, as the authors' MNIST and
            MCAT releases do. Its gradient pulls to the mean of all means: no likelihood.
        log_determinant: the logits hold -1/2 log|Sigma_k|. False, as in the authors' Caffe release: they do not, so
            that they are no log-densities.

    Example:
        >>> import torch
        >>> from robustfg.losses import GaussianMixture
        >>> head = GaussianMixture(channels=8, num_classes=3, margin=0.3)
        >>> output = head(torch.rand(5, 8, 2, 2))
        >>> output.logits.shape, output.embedding.shape
        (torch.Size([5, 3]), torch.Size([5, 8]))
        >>> sorted(head.loss(output, torch.tensor([0, 1, 2, 0, 1])))
        ['classification', 'likelihood', 'loss']
    """

    means: Tensor

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        embedding_dim: int | None = None,
        covariance: Callable[..., Covariance] = Identity,
        priors: Callable[..., Priors] = Uniform,
        initial_means: InitialMeans | None = None,
        means_momentum: float | None = None,
        margin: float = 0.3,
        margin_start: float = 1.0,
        likelihood: float = 0.1,
        likelihood_start: float = 1.0,
        ramp_epochs: float = 0.0,
        likelihood_factor: float = 0.5,
        likelihood_over_all_classes: bool = False,
        log_determinant: bool = True,
    ) -> None:
        super().__init__()
        positive = {"margin": margin, "likelihood": likelihood, "ramp_epochs": ramp_epochs}
        for option, value in (positive | {"likelihood_factor": likelihood_factor}).items():
            refuse_outside(f"loss.{option}", value, least=0)
        for option, value in {"margin_start": margin_start, "likelihood_start": likelihood_start}.items():
            refuse_outside(f"loss.{option}", value, least=0, most=1)
        if means_momentum is not None and not 0 <= means_momentum < 1:
            raise UserError(f"loss.means_momentum must be in [0, 1), or null to learn the means, got {means_momentum}")
        self.margin = Ramp(value=margin, start=margin_start, epochs=ramp_epochs)
        self.likelihood = Ramp(value=likelihood, start=likelihood_start, epochs=ramp_epochs)
        self.likelihood_factor, self.likelihood_over_all_classes = likelihood_factor, likelihood_over_all_classes
        self.log_determinant, self.means_momentum = log_determinant, means_momentum
        self.embedding = Embedding(channels, embedding_dim)
        means = (initial_means or Drawn())(num_classes, self.embedding.dim)
        if means_momentum is None:
            self.means = nn.Parameter(means)
        else:
            self.register_buffer("means", means)
        self.covariance = covariance(num_classes=num_classes, dim=self.embedding.dim)
        self.priors = priors(num_classes=num_classes)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Those there are of ``head`` (the embedding layer), ``means``, ``covariances`` and ``priors``."""
        groups = {
            "head": list(self.embedding.parameters()),
            "means": [self.means] if isinstance(self.means, nn.Parameter) else [],
            "covariances": list(self.covariance.parameters()),
            "priors": list(self.priors.parameters()),
        }
        return {name: members for name, members in groups.items() if members}

    def forward(self, feature_map: Tensor) -> Output:
        embedding = self.embedding(feature_map)
        # Moving means change before the backward pass.
        means = self.means if self.means_momentum is None else self.means.clone()
        logits, offsets = self.covariance.exponents(embedding, means), self._offsets()
        return Output(logits=logits if offsets is None else logits + offsets, embedding=embedding)

    def loss(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        offsets = self._offsets()
        true_offset = None if offsets is None else offsets[label]
        classification = margin_cross_entropy(output.logits, label, self.margin.at(self.epoch), true_offset)
        likelihood = 2 * self.likelihood_factor * self._half_surprise(output.logits, offsets, label)
        if self.training and self.means_momentum is not None:
            follow(self.means, output.embedding, label, self.means_momentum)
        total = classification + self.likelihood.at(self.epoch) * likelihood
        return {"loss": total, "classification": classification, "likelihood": likelihood}

    def survey(self, name: str) -> Survey:
        if name in ("class_means", "class_gaussians"):
            return ClassMeans(
                embed=self.embedding, means=self.means, covariance=self.covariance, priors=self.priors,
                covariances_too=name == "class_gaussians",
            )  # fmt: skip
        return super().survey(name)

    def anomaly(self, output: Output) -> Tensor:
        """min_k D_k; squared distances to means of unit covariance and equal priors without cancellation."""
        if isinstance(self.covariance, Identity) and isinstance(self.priors, Uniform):
            return (output.embedding - self.means[output.logits.argmax(1)]).square().sum(1)
        return -2 * output.logits.amax(1)

    def squared_distances(self, embedding: Tensor) -> Tensor:
        """(x - mu_k)' Sigma_k^-1 (x - mu_k) for embeddings ``(B, D)`` and every class, ``(B, K)``.

        Chi-square with D degrees of freedom under the own class, if the embedding is as the mixture has it.
        """
        return -2 * self.covariance.exponents(embedding, self.means)

    def evidence(self, feature_map: Tensor, output: Output) -> dict[str, Tensor]:
        """The class-activation map of the linear layer that the logits are up to a constant of the sample.

        Nothing where covariances differ by class: the logits are then quadratic in the feature.
        """
        weight = self.covariance.linear(self.means)
        if weight is None:
            return {}
        return {"cam": class_activation(feature_map, self.embedding.pulled_back(weight), output.logits.argmax(1))}

    def _half_surprise(self, logits: Tensor, offsets: Tensor | None, label: Tensor) -> Tensor:
        """The mean of (m + log|Sigma|) / 2 over the batch, of the true class or of all."""
        determinants = self.covariance.log_determinants()
        per_class = None if determinants is None else 0.5 * determinants.expand(len(self.means))
        if offsets is not None:
            per_class = offsets if per_class is None else per_class + offsets
        if self.likelihood_over_all_classes:
            return -logits.mean() if per_class is None else per_class.mean() - logits.mean()
        own = -logits.gather(1, label[:, None]).mean()
        return own if per_class is None else own + per_class[label].mean()

    def _offsets(self) -> Tensor | None:
        """What the logits hold beside -m_k/2, ``(K,)``; None for nothing."""
        offsets, determinants = self.priors.log(), self.covariance.log_determinants()
        if determinants is not None and self.log_determinant:
            half = 0.5 * determinants.expand(len(self.means))
            offsets = -half if offsets is None else offsets - half
        return offsets
