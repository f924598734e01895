"""Backbones: timm networks as maps from images to features."""

from robustfg.models.backbone import Backbone, PublishedBackbone

__all__ = ["Backbone", "PublishedBackbone"]
