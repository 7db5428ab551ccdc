"""Damaged and hostile checkpoints and weight files."""

from __future__ import annotations

import collections
import functools
import io
import os
import pathlib
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attack.forks import check, forbid_code, may_refuse
from attack.rounds import Attack
from attack.values import ANY_DAMAGE, Damage, damages
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import tiny

from condseg.models.backbones.files import read_state
from condseg.zoo.checkpoint import RECIPE, load, restore, save
from condseg.zoo.pretrained import start_content

READERS: dict[str, Callable[[Path], Any]] = {
    "load": load,
    "restore": lambda path: restore(path).network.state_dict(),
    "start_content": lambda path: start_content(str(path)),
    "read_state": read_state,
}


@dataclass(frozen=True)
class State:
    files: dict[str, bytes]
    right: dict[tuple[str, str], Any]
    folder: Path


@dataclass(frozen=True)
class Case:
    file: str
    reader: str
    what: Any


def prepare(folder: Path) -> State:
    """A checkpoint, the same tensors as weights of another project would be, and safetensors."""
    content = torch.load(tiny.write_checkpoint(folder / "old.ckpt"), weights_only=True)
    save(content, folder / "model.ckpt")
    state = content["state_dict"]
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "a.safetensors")
    readers = {path.name: ["read_state"] for path in folder.iterdir()}
    readers["model.ckpt"] = readers["old.ckpt"] = ["load", "restore", "start_content"]
    files = {name: (folder / name).read_bytes() for name in sorted(readers)}
    right = {(name, r): READERS[r](folder / name) for name in readers for r in readers[name]}
    return State(files, right, folder)


def damaged_cases(state: State) -> st.SearchStrategy[Case]:
    places = st.sampled_from(sorted(state.right))
    return st.builds(lambda place, what: Case(*place, what), places, damages(*ANY_DAMAGE))


def run_damaged(state: State, case: Case, folder: Path) -> None:
    """The numbers are those of the file before, or it is refused.

    Files of other projects in formats without a checksum may have other numbers.
    """
    path = folder / case.file
    path.write_bytes(case.what.apply(state.files[case.file]))
    with may_refuse(path.name):
        content = READERS[case.reader](path)
    if case.file in ("legacy.pth", "a.safetensors"):
        touch(content)
        return
    difference = differs(content, state.right[case.file, case.reader])
    check(not difference, f"other content than before the damage | {difference}")


def differs(one: Any, other: Any, where: str = "") -> str:
    """Where two contents differ, or ""."""
    if isinstance(other, torch.Tensor):
        same = isinstance(one, torch.Tensor) and one.dtype == other.dtype
        same = same and one.shape == other.shape and bytes_of(one) == bytes_of(other)
        return "" if same else where
    if isinstance(other, dict):
        if not isinstance(one, dict) or list(one) != list(other):
            return f"{where} keys"
        parts = (differs(one[key], other[key], f"{where}.{key}") for key in other)
        return next(filter(None, parts), "")
    if isinstance(other, list | tuple):
        if not isinstance(one, list | tuple) or len(one) != len(other):
            return where
        parts = (differs(one[n], other[n], f"{where}.{n}") for n in range(len(other)))
        return next(filter(None, parts), "")
    return "" if repr(one) == repr(other) else where


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def touch(content: Any) -> None:
    """Reads each number, which ends the process if a tensor lies outside its storage."""
    if isinstance(content, torch.Tensor):
        content.double().sum()
    elif isinstance(content, dict):
        for key, value in content.items():
            hash(key)
            touch(value)
    elif isinstance(content, list | tuple):
        for value in content:
            touch(value)


class Reduced:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def gadgets(folder: Path) -> dict[str, Any]:
    """Objects that would run code or break the reader, by name."""
    marker = str(folder / "marker")
    touch_it = f"open({marker!r}, 'w').close()"
    storage = torch.zeros(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    rebuild = torch._utils._rebuild_tensor_v2
    array = np.zeros(3).__reduce__()[0]
    hooks: Any = collections.OrderedDict()
    return {
        "system": Reduced(os.system, f"touch {marker}"),
        "popen": Reduced(subprocess.Popen, ["touch", marker]),
        "exec": Reduced(exec, touch_it),
        "eval": Reduced(eval, touch_it),
        "import": Reduced(__import__, "antigravity"),
        "getattr": Reduced(getattr, "", "format"),
        "write": Reduced(pathlib.Path.write_text, Path(marker), "x"),
        "path": Path(marker),
        "open": Reduced(open, marker, "w"),
        "partial": functools.partial(os.system, f"touch {marker}"),
        "torch.load": Reduced(torch.load, marker),
        "hub": Reduced(torch.hub.load, "a/b", "c"),
        "numpy.load": Reduced(np.load, marker, None, True),
        "fromfile": Reduced(np.fromfile, "/etc/passwd"),
        "module": torch.nn.Linear(1, 1),
        "code": Reduced(compile, "1", "a", "eval"),
        "bytearray": Reduced(bytearray, 10**12),
        "size": Reduced(torch.Size, [2**62] * 4),
        "large": Reduced(rebuild, typed, 0, (10**9, 4), (4, 1), False, hooks),
        "outside": Reduced(rebuild, typed, 2**40, (2, 2), (2, 1), False, hooks),
        "stride": Reduced(rebuild, typed, 0, (2, 2), (2**40, 2**40), False, hooks),
        "negative": Reduced(rebuild, typed, -8, (2, 2), (2, 1), False, hooks),
        "expanded": torch.zeros(1).expand(2**40),
        "array": Reduced(array, np.ndarray, (10**15,), b"d"),
        "array of objects": np.array([{"a": 1}, Reduced(os.system, f"touch {marker}")]),
        "structured": np.zeros(2, dtype=[("a", "O"), ("b", "f4")]),
        "nan": torch.full((3,), float("nan")),
        "sparse": torch.zeros(3).to_sparse(),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "meta": torch.zeros(10**6, 10**6, device="meta"),
        "set": {1, 2, 3},
        "deep": functools.reduce(lambda inner, _: [inner], range(400), []),
        "long": 10**5000,
    }


OPCODES = (
    *(b"cos\nsystem\n(S'touch marker'\ntR", b"(S'touch marker'\nios\nsystem\n"),
    *(b"(cos\nsystem\nS'touch marker'\no", b"\x8c\x02os\x8c\x06system\x93", b"P1\n", b"Q"),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8a\xff", b"r\xff\xff\xff\xffq\x00", b"h\x09"),
    *(b"j\xff\xff\xff\xff", b"T\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 7 + b"\x7f"),
    *(b"\x95" + b"\xff" * 8, b"(" * 10_000, b"]" * 5000 + b"a" * 4999, b"0" * 50, b"2" * 100),
    *(b"1", b".", b"\x82\x01", b"b", b"\x81", b"\x92", b"R", b"s", b"u", b"e", b"}", b"\x96"),
    *(b"\x80\x05", b"\x80\xff", b"\x97\x98"),
)


@dataclass(frozen=True)
class Program:
    """The pickle of a real file with other instructions at some place."""

    code: bytes
    part: float
    replaced: int


def prepare_hostile(folder: Path) -> State:
    tiny.write_checkpoint(folder / "model.ckpt")
    content = {"model.ckpt": (folder / "model.ckpt").read_bytes()}
    return State(content, {}, folder)


def hostile_cases(state: State) -> st.SearchStrategy[Case]:
    names = st.sampled_from(sorted(gadgets(state.folder)))
    places = st.sampled_from(["whole", "tensor", "recipe", "key", "item"])
    ways = st.sampled_from(["zip", "zip", "legacy", "protocol 0", "protocol 5"])
    seeds = st.integers(0, 2**32 - 1)
    parts = seeds.map(lambda seed: random.Random(seed).random())
    code = st.one_of(st.sampled_from(OPCODES), st.binary(min_size=1, max_size=6))
    programs = st.builds(Program, code, parts, st.sampled_from([0, 0, 1, 5, 100]))
    hostile = st.one_of(
        *[st.tuples(names, places, ways)] * 2,
        programs,
        damages("flip 1", "flip 4", "block", "cut"),
    )
    return st.builds(Case, st.just("model.ckpt"), st.sampled_from(sorted(READERS)), hostile)


def run_hostile(state: State, case: Case, folder: Path) -> None:
    """No code runs; what loads has finite numbers if it is to be a network."""
    path = folder / case.file
    original = state.files[case.file]
    if isinstance(case.what, tuple):
        name, place, way = case.what
        _write(_placed(original, gadgets(folder)[name], place), path, way)
    else:
        path.write_bytes(_other_pickle(original, case.what))
    forbid_code()
    with may_refuse(path.name):
        content = READERS[case.reader](path)
    check(not (folder / "marker").exists(), "code ran")
    if case.reader == "restore":
        check(all(t.isfinite().all() for t in content.values()), "a network that is not finite")
    touch(content)


def _placed(original: bytes, hostile: Any, place: str) -> Any:
    content = torch.load(io.BytesIO(original), weights_only=True)
    first = next(iter(content["state_dict"]))
    if place == "whole":
        return hostile
    if place == "tensor":
        content["state_dict"][first] = hostile
    elif place == "recipe":
        content[RECIPE]["model"]["network"]["channels"] = hostile
    elif place == "item":
        content["more"] = [hostile]
    else:
        content["state_dict"] = hostile
    return content


def _write(content: Any, path: Path, way: str) -> None:
    if way in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
        return
    with path.open("wb") as file:
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key != "state_dict"}
        pickle.dump(content, file, protocol=int(way[-1]))


def _other_pickle(original: bytes, what: Any) -> bytes:
    """The checkpoint with a changed ``data.pkl``, whose checksum is right."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(output, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                if isinstance(what, Damage):
                    content = what.apply(content)
                else:
                    place = int(what.part * len(content))
                    content = content[:place] + what.code + content[place + what.replaced :]
            new.writestr(member.filename, content)
    return output.getvalue()


DAMAGED = Attack(
    "damaged checkpoints",
    "bits flipped, cut, or other bytes: refused, or the same numbers",
    prepare,
    damaged_cases,
    run_damaged,
    per_round=10,
    seconds=200,
)
HOSTILE = Attack(
    "hostile checkpoints",
    "pickles that call functions, have other instructions, or tensors outside their storage",
    prepare_hostile,
    hostile_cases,
    run_hostile,
    per_round=10,
    seconds=200,
)
