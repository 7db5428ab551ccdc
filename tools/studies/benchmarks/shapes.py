"""Sizes of what is measured."""

from __future__ import annotations

from dataclasses import dataclass

from condseg.structures import Size


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of networks and inputs; the defaults are those of the docs.

    Attributes:
        image: (height, width) in evaluation.
        detections: per image.
        candidates: locations and classes whose score passes the threshold, before NMS.
        backbone, width, channels: of the network.
        train, batch, objects: (height, width), images and objects per image in training.
        maps: (height, width) of the mask features.
        backward: instances of the mask head in training.
        instances: of the scaling curve.
        filters: batch, channels, height and width of HDFNet's filtering.
        classifier, classifier_side, classifier_batches: classification network and its images.
    """

    image: Size = (800, 1216)
    detections: int = 100
    candidates: int = 1000
    backbone: str = "resnet50"
    width: int = 64
    channels: int = 256
    train: Size = (512, 512)
    batch: int = 2
    objects: int = 8
    maps: Size = (100, 152)
    backward: tuple[int, int] = (64, 500)
    instances: tuple[int, ...] = (1, 10, 100, 500, 2000)
    filters: tuple[int, int, int, int] = (4, 64, 64, 64)
    classifier: str = "resnet50"
    classifier_side: int = 224
    classifier_batches: tuple[int, int] = (8, 1)


QUICK = Shapes(
    image=(128, 192),
    detections=10,
    candidates=100,
    backbone="resnet18",
    width=8,
    channels=64,
    train=(64, 64),
    objects=2,
    maps=(16, 24),
    backward=(4, 16),
    instances=(1, 4),
    filters=(2, 4, 8, 8),
    classifier="resnet18",
    classifier_side=64,
    classifier_batches=(2, 1),
)
"""Small ones, to see that everything runs; their ratios say little."""
