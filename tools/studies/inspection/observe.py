"""Runs a model on images and observes its dynamic layers: attentions, kernels, experts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condseg.data.transforms import resized
from condseg.inference.predictor import Predictor
from condseg.inference.sources import find_depths, find_inputs, read_pair
from condseg.layers import (
    ConvSlot,
    DynamicContextFilter2d,
    DynamicDilatedFilter2d,
    DynamicLocalFilter2d,
)
from condseg.layers.parts import resize_like
from studies.inspection.records import Inspection, LayerRecord, PixelKernels, change

DYNAMIC = (ConvSlot, DynamicContextFilter2d, DynamicDilatedFilter2d, DynamicLocalFilter2d)


def inspect(
    predictor: Predictor,
    inputs: Sequence[str],
    score: float = 0.4,
    depth: str | Path | None = None,
) -> Inspection:
    """Run the model on images, one at a time, and observe its dynamic layers.

    Args:
        inputs: image files, folders, patterns.
        score: min score at which a detection assigns its class to the image.
        depth: depth map of a single image, or a folder of them, for a network that takes depth.

    Raises:
        ValueError: the model has no dynamic layer, there is no readable image, ``score`` is
            outside 0..1, or depth is missing.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"score is {score}; 0..1 is allowed")
    if not any(isinstance(module, DYNAMIC) for module in predictor.network.modules()):
        raise ValueError(
            "the checkpoint's network has no dynamic layer "
            "(model.network.backbone.conv and model.network.mask_filter configure them)"
        )
    found = find_inputs(inputs)
    failed = [f"no images in {text!r}" for text in found.without]
    files = [source.location for source in found.sources if isinstance(source.location, Path)]
    images: list[Path] = []
    classes: dict[str, list[int]] = {name: [] for name in predictor.names}
    with Observer.attached(predictor.network) as observer:
        for path, depth_file in zip(files, find_depths(predictor, files, depth), strict=True):
            try:
                image, depth_map = read_pair(path, depth_file)
            except ValueError as error:
                failed.append(str(error))
                continue
            restored = predictor.restored
            size = resized(image.shape[:2], restored.short_side, restored.max_long_side)
            observer.image, observer.size = len(images), size
            detections = predictor(image, depth_map)
            for label in set(detections.labels[detections.scores >= score].tolist()):
                classes[predictor.names[label]].append(len(images))
            images.append(path)
    if not images:
        raise ValueError(f"no image to inspect: {'; '.join(failed)}")
    detected = {name: at for name, at in classes.items() if at}
    return Inspection(images, detected, score, *observer.results(), failed)


class Observer:
    """Collects what each dynamic layer does with each image.

    Attributes:
        layers: name -> layer.
        image, size: index and (height, width) of the image that is next, without padding.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = {n: m for n, m in network.named_modules() if isinstance(m, DYNAMIC)}
        self.image, self.size, self.padded = 0, (1, 1), (1, 1)
        self._attentions: dict[str, dict[str, list[Tensor]]] = {n: {} for n in self.layers}
        self._kernels: dict[str, tuple[Tensor, float, int]] = {}
        self._pixels: list[PixelKernels] = []

    @classmethod
    @contextmanager
    def attached(cls, network: nn.Module) -> Iterator[Observer]:
        """An observer whose hooks are on the network in the block."""
        observer = cls(network)

        def before_network(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            observer.padded = tuple(inputs[0].shape[-2:])

        with ExitStack() as hooks:
            hooks.enter_context(network.register_forward_pre_hook(before_network))
            for name, layer in observer.layers.items():
                hook = partial(observer.observe, name)
                hooks.enter_context(layer.register_forward_pre_hook(hook))
            yield observer

    def observe(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Record a layer's attentions and kernels for its inputs: a map, and a guide if any."""
        x, guide = inputs[0], inputs[-1]
        if isinstance(layer, ConvSlot):
            self._record(name, layer.attentions(x), layer.kernel_and_bias(*inputs)[0])
        elif isinstance(layer, DynamicContextFilter2d):
            kernel = layer.filters(guide)  # (B, C, k, k)
            taps = kernel.abs().flatten(2)
            weights = taps / taps.sum(2, keepdim=True).clamp_min(1e-12)
            self._record(name, {"spatial": weights.mean(1)}, kernel)
        else:
            guide = resize_like(guide, x)
            if isinstance(layer, DynamicLocalFilter2d):
                kernels = layer.filters(guide).unflatten(1, (layer.groups, -1))
            else:
                assert isinstance(layer, DynamicDilatedFilter2d)
                kernels = layer.kernels(guide)
            self._pixels.append(self._pixel_kernels(name, layer, kernels[0].double().cpu()))

    def _record(self, name: str, attentions: dict[str, Tensor], kernels: Tensor) -> None:
        for axis, values in attentions.items():
            self._attentions[name].setdefault(axis, []).append(values[0].cpu())
        kernel = kernels[0].double().cpu()
        total, energy, count = self._kernels.get(name, (torch.zeros_like(kernel), 0.0, 0))
        energy += float(kernel.square().sum())
        self._kernels[name] = (total + kernel, energy, count + 1)

    def _pixel_kernels(self, name: str, layer: Any, k: Float[Tensor, "c t h w"]) -> PixelKernels:
        kh, kw = _kernel_size(layer)
        cell = self.padded[0] / k.shape[2]
        rows, columns = (max(1, math.ceil(side / cell)) for side in self.size)
        k = k[:, :, :rows, :columns]  # without the padding
        squares = k.square().mean(0)  # (T, H, W)
        energy = squares.sum(0)  # (H, W)
        taps = torch.arange(kh * kw)
        offsets = torch.stack((taps % kw - kw // 2, taps // kw - kh // 2)) * layer.dilation
        weights = k.abs().sum(0)  # (T, H, W)
        weights = weights / weights.sum(0).clamp_min(1e-12)
        deviation = (k - k.mean((2, 3), keepdim=True)).square().mean(0).sum(0)  # (H, W)
        total = max(float(energy.mean()), 1e-12)
        return PixelKernels(
            name,
            self.image,
            layer.dilation,
            cell,
            energy.sqrt().numpy(),
            (1 - squares[kh * kw // 2] / energy.clamp_min(1e-12)).numpy(),
            torch.einsum("at,thw->ahw", offsets.double(), weights).numpy(),
            (deviation / total).sqrt().numpy(),
            float(deviation.mean()) / total,
        )

    def results(self) -> tuple[list[LayerRecord], list[PixelKernels]]:
        """A record for each layer, and the pixel kernels of all images."""
        records = []
        for name, layer in self.layers.items():
            attentions = {
                axis: torch.stack(values).double().numpy()
                for axis, values in self._attentions[name].items()
            }
            kind, size = type(layer).__name__, _kernel_size(layer)
            record = LayerRecord(name, kind, size, attentions, _expert_cosines(layer))
            changes = [p.change for p in self._pixels if p.layer == name]
            if changes:
                record.change = float(np.mean(changes))
            elif name in self._kernels:
                total, energy, count = self._kernels[name]
                if count > 1:
                    record.change = change((total / count).numpy(), energy / count)
            records.append(record)
        return records, self._pixels


def _kernel_size(layer: Any) -> tuple[int, ...]:
    size = layer.filter_size if isinstance(layer, DynamicContextFilter2d) else layer.kernel_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _expert_cosines(layer: Any) -> Float[np.ndarray, "e e"] | None:
    if getattr(layer, "num_experts", 1) < 2:
        return None
    flat = F.normalize(layer.weight.detach().double().flatten(1), dim=1)  # (E, O C k k)
    return (flat @ flat.T).cpu().numpy()
