"""Reading tensors from checkpoint files without executing code, and loading them strictly."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# What numpy arrays are pickled with, under the names of numpy 1 and 2: the only additions to what
# torch itself reads with weights_only.
_NUMPY: list[Any] = [
    *(
        (value.__reduce__()[0], f"{module}.multiarray.{name}")
        for value, name in ((np.empty(0), "_reconstruct"), (np.float64(), "scalar"))
        for module in ("numpy.core", "numpy._core")
    ),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "efdbhilqB?"),
]
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
    content = {k: _as_tensor(v) for k, v in content.items()}
    wrong = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"weights: in {path} these are not tensors: {', '.join(wrong[:5])}")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def read_pickled(path: Path, what: str, device: str | torch.device = "cpu") -> Any:
    """Reads a file of ``torch.save`` without executing code in it; messages begin with ``what``.

    Raises:
        ValueError: a damaged file, or one that holds more than tensors, numpy arrays and plain
            data (the message names what was refused).
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"holds {refused[1]}, and pickled code is never executed; a file of tensors alone "
            "(a state dict) is allowed"
            if refused
            else f"is damaged, or holds more than tensors (pickled code is never executed): "
            f"{str(error).splitlines()[0]}"
        )
        raise ValueError(f"{what}: {path} {reason}") from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"{what}: {path} cannot be read, is it whole? {lines[0]}") from error


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"weights: {path} needs safetensors: pip install 'condseg[pretrained]'"
        ) from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
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
            layers may be missing from ``state``.
        state: by the network's names.
        source: of the tensors, for messages.
        left_out: key -> reason, for tensors that the network does not have.
        may_be_missing: keys whose tensors in the network are kept.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape (both shapes are named).
    """
    left_out = left_out or {}
    own = network.state_dict()
    optional = ("num_batches_tracked", ".temperature", *may_be_missing)
    missing = [k for k in own if k not in state and not k.endswith(optional)]
    unknown = [k for k in state if k not in own and k not in left_out]
    unlike = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the network"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("other shape", unlike))
        if keys
    ]
    if problems:
        raise ValueError(f"weights: {source} does not fit the network; {'; '.join(problems)}")
    if not any(tensor.is_meta for tensor in own.values()):
        network.load_state_dict({k: state.get(k, own[k]) for k in own}, strict=True)
    for key in state:
        if key not in own:
            log.info("%s: %s left out: %s", source, key, left_out[key])


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
