"""Reading tensors from checkpoint files without executing code, and loading them strictly."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from condseg.errors import few
from condseg.layers.experts import NATURAL_SCALE
from condseg.models.backbones.pickled import read_pickled

log = logging.getLogger(__name__)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES = {*_FLOATS, *_INTEGERS}
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the named tensors of a ``.pth``/``.pt``/``.ckpt`` or ``.safetensors`` file.

    A dictionary inside under ``state_dict``, ``model`` or ``model_state_dict`` is unwrapped, numpy
    arrays become tensors, and the prefix ``module.`` of data-parallel training is removed. Pickled
    code is never executed (``weights_only``).

    Raises:
        ValueError: the file is missing, damaged, holds pickled code or no named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: no such file: {path}")
    safe = path.suffix == ".safetensors"
    content: Any = _read_safetensors(path) if safe else read_pickled(path, "weights")
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"weights: {path} holds a {type(content).__name__}, not named tensors")
    state = named_tensors({k: _as_tensor(v) for k, v in content.items()}, f"weights: {path}")
    return {k.removeprefix("module."): v for k, v in state.items()}


def named_tensors(content: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """The content, whose entries must all be tensors of numbers that are in the file.

    Sparse, quantized, complex and 8-bit floating-point tensors do not fit any network, nor do
    those that repeat few numbers of the file, and so are larger than the file.

    Raises:
        ValueError: another entry; messages begin with ``source``.
    """
    wrong = [str(key) for key, value in content.items() if not _is_plain(value)]
    if wrong:
        raise ValueError(
            f"{source}: these are not tensors: {few(wrong)}; tensors of numbers are allowed"
        )
    return {str(key): value for key, value in content.items()}


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in _DTYPES
        and value.layout is torch.strided
        and not value.is_meta
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
        native = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        return torch.from_numpy(native).reshape(value.shape)
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"weights: {path} needs safetensors: pip install 'condseg[pretrained]'"
        ) from error
    try:
        return dict(load_file(path))
    except Exception as error:  # its header may state any types and shapes
        raise ValueError(f"weights: {path} cannot be read, is it whole? {error}") from error


def load_strict(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    left_out: Mapping[str, str] | None = None,
    may_be_missing: Sequence[str] = (),
) -> None:
    """Loads ``state`` and accounts for each of its tensors: used, or logged as left out and why.

    For a network on the meta device, names and shapes are compared and nothing is loaded.

    Args:
        network: its ``num_batches_tracked`` counters and the ``temperature`` of its dynamic
            layers may be missing from ``state``. A missing ``natural_scale`` is the published
            scale.
        state: by the network's names.
        source: of the tensors, for messages.
        left_out: key -> reason, for tensors that the network does not have.
        may_be_missing: keys whose tensors in the network are kept.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape (both shapes are named), or not
            finite.
    """
    left_out = left_out or {}
    own = {k: v for k, v in network.state_dict().items() if not k.endswith(NATURAL_SCALE)}
    modules = {k.rpartition(".")[0] for k in own}
    scales = {k: state[k] for k in state if k.removesuffix(NATURAL_SCALE) in modules - {k}}
    optional = ("num_batches_tracked", ".temperature", *may_be_missing)
    missing = [k for k in own if k not in state and not k.endswith(optional)]
    unknown = [k for k in state if k not in own and k not in scales and k not in left_out]
    unlike = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the network"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {few(keys)}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("other shape", unlike))
        if keys
    ]
    if problems:
        raise ValueError(f"weights: {source} does not fit the network; {'; '.join(problems)}")
    if wrong := [k for k in own if k in state and not _is_finite(state[k])]:
        raise ValueError(
            f"weights: {source} has values that are not finite (NaN or infinity) in "
            f"{few(wrong)}; an earlier checkpoint may have none"
        )
    if not any(tensor.is_meta for tensor in own.values()):
        tensors = {k: state.get(k, own[k]) for k in own}
        network.load_state_dict(tensors | scales, strict=True)
    for key in state:
        if key not in own and key not in scales:
            log.info("%s: %s left out: %s", source, key, left_out[key])


def _is_finite(tensor: Tensor) -> bool:
    # The sum needs no memory and is finite unless a value is not, or unless it overflows.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def rename(
    state: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str]],
    derived: Mapping[str, str],
    source: str,
) -> dict[str, Tensor]:
    """Renames each tensor by the first rule whose pattern matches its whole name.

    Args:
        state: of a checkpoint.
        rules: (regular expression, replacement with ``\\1``...).
        derived: regular expression -> reason, for tensors that condseg computes itself.
        source: the project of these names, for messages.

    Raises:
        ValueError: a name without a rule, or two tensors with the same new name.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        reason = next((why for old, why in derived.items() if re.fullmatch(old, key)), None)
        if reason is not None:
            log.info("%s: %s left out: %s", source, key, reason)
            continue
        match = next(((m, new) for old, new in rules if (m := re.fullmatch(old, key))), None)
        if match is None:
            raise ValueError(f"weights: {source}: unknown tensor {key}")
        name = match[0].expand(match[1])
        if name in renamed:
            raise ValueError(f"weights: {source}: two tensors would be {name}, one of them {key}")
        renamed[name] = tensor
    return renamed


def sha256_in_name(path: Path) -> str:
    """The SHA-256, or its first digits, of a file that is named by it; else "".

    Known are torch.hub's names, ``resnet18-f37072fd.pth``, and the Hugging Face hub's, which are
    the 64 digits.
    """
    match = re.search(r"-([a-f0-9]{8,})\.|^([a-f0-9]{64})$", path.name)
    return (match[1] or match[2]) if match else ""


def check_sha256(path: Path, cure: str = "delete it, and it will be downloaded again") -> None:
    """Raises ValueError, with a ``cure``, if a file's SHA-256 is not the one in its name."""
    expected = sha256_in_name(path)
    if not expected:
        return
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise ValueError(
            f"weights: {path} is damaged: its SHA-256 begins with {digest[: len(expected)]}, not "
            f"{expected}; {cure}"
        )
