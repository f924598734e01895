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


def nearness(class_distance: Tensor, predicted: Tensor, epsilon: float = 1e-4) -> Tensor:
    """How near every position lies to the predicted class's closest prototype, ``(B, h, w)``.

    log((d + 1) / (d + epsilon)), the similarity of Chen et al., "This Looks Like That" (NeurIPS 2019).

    Args:
        class_distance: ``(B, K, h, w)`` squared distances to every class's closest prototype.
        predicted: ``(B,)`` classes.
        epsilon: as released.
    """
    distance = class_distance.take_along_dim(predicted[:, None, None, None], dim=1).squeeze(1)
    return ((distance + 1) / (distance + epsilon)).log()
