"""Where in the image the evidence for a decision lies."""

from torch import Tensor, einsum


def class_activation(feature_map: Tensor, weight: Tensor, predicted: Tensor) -> Tensor:
    """Class-activation map of the predicted class of a linear layer on the pooled feature, ``(B, h, w)``.

    The positive part of (w_k - mean_j w_j) . f_t at every position t (Zhou et al., "Learning Deep Features for
    Discriminative Localization", CVPR 2016). The mean is taken off because adding one vector to all weights changes
    no decision, but would change the map.

    Args:
        feature_map: ``(B, C, h, w)``.
        weight: ``(K, C)``.
        predicted: ``(B,)`` classes.
    """
    contrast = weight - weight.mean(0)
    return einsum("bc,bchw->bhw", contrast[predicted], feature_map).clamp_min(0)


def of_class(maps: Tensor, chosen: Tensor) -> Tensor:
    """One class's map of every sample, ``(B, h, w)``.

    Args:
        maps: ``(B, K, h, w)``.
        chosen: ``(B,)`` classes.
    """
    return maps.take_along_dim(chosen[:, None, None, None], dim=1).squeeze(1)
