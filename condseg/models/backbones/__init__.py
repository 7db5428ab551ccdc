"""Backbones and their initial weights."""

from condseg.models.backbones.backbone import Backbone

__all__ = ["Backbone"]
