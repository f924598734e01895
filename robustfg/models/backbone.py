"""The backbone: any timm network as a map from images to features."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfg.core.errors import UserError, refuse_outside
from robustfg.core.memory_layout import arrange
from robustfg.core.types import pixels_checked
from robustfg.models.stride import keep_map_large
from robustfg.models.unreached import drop, unreached
from robustfg.models.weights import check_name, create

SMALL_IMAGE = 128  # below this side, strides and patches are fitted to the image


class Backbone(nn.Module):
    """Images ``(B, 3, H, W)`` in [0, 1] to feature maps ``(B, channels, h, w)``, whatever the network's own layout.

    Convolutional networks, ViTs (tokens) and Swins (channels last) come out alike; class and register tokens are
    dropped, and of networks whose features are class tokens alone (PiT) the last stage's patches are taken, normalised
    as the tokens are. Normalisation by the weights' own mean and standard deviation happens inside.

    Args:
        name: timm model name.
        image_size: side of the square images it will see.
        pretrained: download timm's weights.
        weights: local ``.safetensors`` or ``.pth`` file to load instead.
        resize: side to which images are enlarged inside the network (bilinear, differentiable; epsilon stays in the
            given pixels). None to feed them as they are.
        smallest_map: on images under 128 px lower a convolutional network's first strides until the map keeps so many
            positions a side, and give a ViT smaller patches; 1 to leave the network as it is.
        options: further arguments of ``timm.create_model``, such as ``drop_path_rate``.
        num_classes: size of the network's own last layer; 0 for none, None for as published.
        channels_last: memory layout of the convolutions' weights; ``"auto"`` leaves it to the network's widths
            (``robustfg.core.memory_layout``).

    Parameters that the feature map does not depend on are left out: distributed training waits for their gradients in
    vain. A state dict that has them is loaded without them.

    Attributes:
        unreached: names of the parameters left out.
        channels: channels of the feature map.
        map_size: its height and width.
    """

    network: Any  # timm's networks share methods that nn.Module does not declare
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        pretrained: bool = False,
        weights: str | None = None,
        resize: int | None = None,
        smallest_map: int = 4,
        options: Mapping[str, Any] | None = None,
        num_classes: int | None = 0,
        channels_last: Literal["auto"] | bool = "auto",
    ) -> None:
        super().__init__()
        check_name(name)
        for option, value in {"image_size": image_size, "resize": resize, "smallest_map": smallest_map}.items():
            refuse_outside(f"model.{option}", value, least=1)
        side = resize or image_size
        small = smallest_map > 1 and side < SMALL_IMAGE
        arguments = dict(options or {}) | _token_arguments(name, side, small)
        arguments |= {} if num_classes is None else {"num_classes": num_classes}
        self.network = create(name, pretrained=pretrained, weights=weights, **arguments)
        self.resize = resize
        if small and "img_size" not in arguments:
            keep_map_large(self.network, side, smallest_map)
        config = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config.get("mean", (0.5,) * 3)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.get("std", (0.5,) * 3)).view(1, 3, 1, 1))
        arrange(self.network, channels_last)
        self._takes_patches = False
        feature_map = self._measured(name, image_size)
        self.channels, *self.map_size = feature_map.shape[1:]
        self.unreached: tuple[str, ...] = ()
        if num_classes == 0:  # with a head of its own everything is used
            self._leave_out(unreached(self, feature_map), image_size)
        self.register_load_state_dict_pre_hook(_without_unreached)  # type: ignore[no-untyped-call]

    def forward(self, image: Tensor) -> Tensor:
        """The feature map of a batch. Raises ``ValueError`` if an image leaves [0, 1]."""
        pixels = self.normalise(image)
        if not self._takes_patches:
            return self._as_map(self.network.forward_features(pixels))
        (patches,) = self.network.forward_intermediates(pixels, indices=1, intermediates_only=True)
        return self._as_map(self.network.norm(patches.flatten(2).transpose(1, 2)))

    def normalise(self, image: Tensor) -> Tensor:
        """Checks, enlarges where asked, and normalises pixels."""
        if not pixels_checked.get() and not torch.compiler.is_compiling():
            low, high = torch.aminmax(image)
            if not (low >= 0 and high <= 1):
                raise ValueError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
        if self.resize is not None:
            image = F.interpolate(image, size=(self.resize, self.resize), mode="bilinear", antialias=False)
        return (image - self.mean) / self.std

    def _as_map(self, features: Any) -> Tensor:
        if not isinstance(features, Tensor) or features.dim() not in (3, 4):
            what = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"its features are no single map or sequence of tokens but {what}")
        if features.dim() == 3:
            side = math.isqrt(features.shape[1])
            prefix = getattr(self.network, "num_prefix_tokens", features.shape[1] - side**2)
            tokens = features[:, prefix:]
            side = math.isqrt(tokens.shape[1])
            if side**2 != tokens.shape[1]:
                raise UserError(f"its {tokens.shape[1]} tokens are no square map")
            return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        width = getattr(self.network, "num_features", None)
        last = features.shape[1] != width == features.shape[3]
        if last or getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features

    def _measured(self, name: str, image_size: int) -> Tensor:
        training = self.network.training
        try:
            with torch.enable_grad():
                image = torch.zeros(1, 3, image_size, image_size)
                self._takes_patches = _gives_class_tokens_alone(self.eval().network, self.normalise(image))
                feature_map: Tensor = self(image)
            return feature_map
        except UserError as error:
            raise UserError(f"model.name={name} cannot be a backbone: {error}; choose another network") from error
        except Exception as error:  # strangers' networks fail in any way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"model.name={name} cannot take {image_size}-px images ({reason}); set data.image_size to its own size "
                "or model.resize to enlarge them inside the network"
            ) from error
        finally:
            self.train(training)

    def _leave_out(self, names: list[str], image_size: int) -> None:
        """Drops parameters, or freezes them where the network cannot run without."""
        kept = {name: self.get_parameter(name) for name in names}
        drop(self, names)
        training = self.network.training
        try:
            if names:
                with torch.no_grad():
                    self.eval()(torch.zeros(1, 3, image_size, image_size))
            self.unreached = tuple(names)
        except Exception:
            for name, value in kept.items():
                owner, _, key = name.rpartition(".")
                self.get_submodule(owner).register_parameter(key, nn.Parameter(value.detach(), requires_grad=False))
        finally:
            self.train(training)


class PublishedBackbone(Backbone):
    """A finished timm classifier up to its last layer, pooled as its authors do: feature maps ``(B, D, 1, 1)``.

    Attributes:
        head: its last, linear layer.
    """

    def __init__(
        self, *, name: str, image_size: int, num_classes: int, pretrained: bool = False, weights: str | None = None
    ) -> None:
        super().__init__(
            name=name, image_size=image_size, pretrained=pretrained, weights=weights, smallest_map=1,
            num_classes=num_classes if weights else None,
        )  # fmt: skip
        head = self.network.get_classifier()
        if not isinstance(head, nn.Linear):
            raise UserError(f"model.name={name} does not end in a linear layer and cannot be evaluated untrained")
        if head.out_features != num_classes:
            raise UserError(f"model.name={name} knows {head.out_features} classes, but data has {num_classes}")
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        features = self.network.forward_features(self.normalise(image))
        pooled: Tensor = self.network.forward_head(features, pre_logits=True)
        return pooled.flatten(1)[:, :, None, None]


def _gives_class_tokens_alone(network: Any, pixels: Tensor) -> bool:
    tokens = getattr(network, "cls_token", None)
    if tokens is None or hasattr(network, "num_prefix_tokens"):
        return False
    return bool(network.forward_features(pixels).shape[1] == tokens.shape[1])


def unused_names(module: nn.Module) -> set[str]:
    """Names of the parameters that the backbones in a module have left out, as older checkpoints hold them."""
    parts = module.named_modules()
    return {
        f"{path}.{name}".lstrip(".") for path, part in parts if isinstance(part, Backbone) for name in part.unreached
    }


def _without_unreached(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Takes what older checkpoints hold beside a backbone's parameters out of a state that is being loaded."""
    for name in module.unreached:  # type: ignore[union-attr]
        state.pop(prefix + name, None)


def _token_arguments(name: str, side: int, small: bool) -> dict[str, Any]:
    """Image and patch size for networks that must know them beforehand, such as ViT and Swin."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.fixed_input_size:
        return {}
    arguments: dict[str, Any] = {"img_size": side}
    if small and "patch16" in name:
        arguments["patch_size"] = max(2, 2 ** ((side // 7).bit_length() - 1))
    return arguments
