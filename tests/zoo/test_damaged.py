"""Damaged and hostile checkpoints: refused in one line with the file's name, or read unchanged."""

from __future__ import annotations

import copy
import logging
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import foreign, tiny
from torch import nn

from condseg.inference.predictor import Predictor
from condseg.models.backbones.files import load_strict
from condseg.zoo.checkpoint import RECIPE, check_fit, load, restore, restore_content
from condseg.zoo.pretrained import convert, start_content

IMAGE = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


def small_checkpoint(path: Path) -> Path:
    """With many arguments in its recipe: BiFPN, ODConv, a filter."""
    conv = {"class_path": "condseg.layers.ODConv2d", "init_args": {"num_experts": 2}}
    pyramid = {"class_path": "condseg.models.BiFPN", "init_args": {"num_repeats": 1}}
    mask_filter = {
        "class_path": "condseg.layers.DynamicDilatedPyramid2d",
        "init_args": {"dilations": [1, 3], "reduction": 4, "steps": 2},
    }
    backbone = tiny.BACKBONE | {"conv": conv, "where": [5]}
    return tiny.write_checkpoint(
        path, backbone=backbone, pyramid=pyramid, mask_filter=mask_filter, mask_features=8
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("whole") / "whole.ckpt")


def outcome(read: Callable[..., Any], *args: Any) -> Any:
    """What is read, or the one line with which it is refused."""
    try:
        return read(*args)
    except ValueError as error:
        message = str(error)
    assert "x.ckpt" in message
    assert "\n" not in message
    assert len(message) < 900
    return message


def refusal(read: Callable[..., Any], *args: Any) -> str:
    message = outcome(read, *args)
    assert isinstance(message, str)
    return message


def regions(path: Path) -> dict[str, list[range]]:
    """The bytes of torch's archive by what they are."""
    content = path.read_bytes()
    found: dict[str, list[range]] = {"header": [], "tensor": [], "pickle": [], "small": []}
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            start = record.header_offset
            start += 30 + sum(struct.unpack("<HH", content[start + 26 : start + 30]))
            name = record.filename.partition("/")[2]
            kind = {"data.pkl": "pickle", "data": "tensor"}.get(name.partition("/")[0], "small")
            found[kind].append(range(start, start + record.file_size))
            found["header"].append(range(record.header_offset, start))
        found["directory"] = [range(archive.start_dir, len(content))]
    return found


def flips(path: Path, each: int, seed: int = 0) -> Iterator[bytes]:
    """The file with a single bit flipped, ``each`` times in every region."""
    draw, content = random.Random(seed), path.read_bytes()
    for ranges in regions(path).values():
        for _ in range(each):
            damaged = bytearray(content)
            damaged[draw.choice(draw.choice([r for r in ranges if r]))] ^= 1 << draw.randrange(8)
            yield bytes(damaged)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


@pytest.mark.parametrize("each", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_refused_or_changes_nothing(
    whole: Path, tmp_path: Path, each: int
) -> None:
    expected, path = load(whole), tmp_path / "x.ckpt"
    refused = 0
    for content in flips(whole, each):
        path.write_bytes(content)
        result = outcome(load, path)
        refused += isinstance(result, str)
        assert isinstance(result, str) or same(result, expected)
    assert refused >= 3 * each  # the records: tensors, pickle and the small ones


def test_a_cut_file_is_refused(whole: Path, tmp_path: Path) -> None:
    content, path = whole.read_bytes(), tmp_path / "x.ckpt"
    for size in (0, 1, 3, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert refusal(load, path)


def test_without_checksums_a_file_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = foreign.save({"state_dict": {}}, tmp_path / "x.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    with caplog.at_level(logging.WARNING):
        load(path)
    assert f"{path} has no checksums" in caplog.text


def test_a_compressed_record_is_refused(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    assert "is compressed" in refusal(load, path)


WEIGHT = "network.head.controller.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((169, 64, 3, 3), torch.nan), "(NaN or infinity) in head.controller.weight;"),
        (torch.zeros(1).expand(169, 64, 3, 3), f"not tensors: {WEIGHT};"),
        (torch.zeros(169, 64, 3, 3, dtype=torch.complex64), f"not tensors: {WEIGHT};"),
        (torch.zeros(3), "head.controller.weight: (3,) in the file, (169, 64, 3, 3) in the netw"),
        ([1.0], f"not tensors: {WEIGHT};"),
    ],
    ids=["nan", "expanded", "complex", "shape", "list"],
)
def test_wrong_tensors(whole: Path, tmp_path: Path, value: Any, message: str) -> None:
    content = load(whole)
    path = foreign.save(
        content | {"state_dict": content["state_dict"] | {WEIGHT: value}}, tmp_path / "x.ckpt"
    )
    for read in (restore, start_content):
        assert message in refusal(read, path)


def test_large_numbers_are_finite() -> None:
    """Their sum is not."""
    network = nn.Linear(2, 1)
    state = {"weight": torch.full((1, 2), 3e38), "bias": torch.zeros(1)}
    load_strict(network, state, source="x")
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize("state", [None, [], 3, torch.zeros(2), {1: torch.zeros(1), "x": [2]}])
def test_a_state_that_is_no_mapping_of_tensors(whole: Path, tmp_path: Path, state: Any) -> None:
    path = foreign.save(load(whole) | {"state_dict": state}, tmp_path / "x.ckpt")
    for read in (load, start_content):
        refusal(read, path)


ABSURD = {
    "pyramid.init_args.num_repeats": (10**9, "num_repeats is 1000000000; 1 to 100 is allowed"),
    "head.init_args.tower_convs": (10**5, "tower_convs is 100000; 0 to 100 is allowed"),
    "mask_branch_convs": (10**6, "mask_branch_convs is 1000000; 0 to 100 is allowed"),
    "mask_head_layers": (10**7, "mask_head_layers is 10000000; 1 to 100 is allowed"),
    "mask_filter.init_args.steps": (10**6, "steps is 1000000; 1 to 100 is allowed"),
    "mask_filter.init_args.dilations": ([1, 10**6], "<= 255"),
    "backbone.conv.init_args.num_experts": (10**7, "num_experts is 10000000; 1 to 100 is allowed"),
    "backbone.conv.init_args.temperature": (1e-400, "temperature=0.0 must be positive"),
    "channels": (2**24, "in the file, (16777216, "),
    "mask_head_channels": (10**6, "in the file, (1000013000001, 64, 3, 3) in the network"),
    "backbone.width": (10**30, "not compatible"),
    "mask_features": (-8, "mask_features=-8 must be positive"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_number_is_refused_before_memory_is_used(whole: Path, name: str) -> None:
    value, message = ABSURD[name]
    content = load(whole)
    owner = content[RECIPE]["model"]["network"]
    *keys, last = name.split(".")
    for key in keys:
        owner = owner[key]
    owner[last] = value
    assert message in refusal(check_fit, content, "x.ckpt")


def nested(depth: int, width: int) -> list[Any]:
    """Lists of lists, which a file of a few kilobytes can hold."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner] * width
    return inner


VALUES: list[Any] = [
    *(None, True, "", "a\nb", -1, 0, 2, 10**5, 10**9, 2**63, 10**400, 0.5, 1e30),
    *(float("nan"), float("inf"), [], {}, ["a"], {"a": 1}, {1: 2}, {None: 1}, (1,), b"x", 1 + 2j),
    *(nested(3000, 1), nested(60, 2), torch.zeros(2), torch.float16),
    *("condseg.models.FPN", "condseg.cli.train.main"),
    *({"class_path": path} for path in ("os.system", "torch.nn.Linear", "condseg.layers.DyConv2d")),
]


def mutations(recipe: dict[str, Any], rounds: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Recipes with one value changed, removed or added."""

    def owners(value: Any) -> Iterator[Any]:
        if isinstance(value, dict | list) and value:
            yield value
            for inner in value.values() if isinstance(value, dict) else value:
                yield from owners(inner)

    draw = random.Random(seed)
    for _ in range(rounds):
        mutated = copy.deepcopy(recipe)
        owner = draw.choice(list(owners(mutated)))
        key = draw.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        what = draw.random()
        if what < 0.1:
            del owner[key]
        elif what < 0.2 and isinstance(owner, dict):
            owner[draw.choice(["junk", 1, None, "class_path"])] = draw.choice(VALUES)
        else:
            owner[key] = draw.choice(VALUES)
        yield mutated


@pytest.mark.parametrize("rounds", [40, pytest.param(600, marks=pytest.mark.slow)])
def test_a_mutated_recipe_is_refused_or_predicts(whole: Path, rounds: int) -> None:
    content = load(whole)
    refused = 0
    for recipe in mutations(content[RECIPE], rounds):
        result = outcome(restore_content, content | {RECIPE: recipe}, "x.ckpt")
        refused += isinstance(result, str)
        if not isinstance(result, str):
            Predictor(result, "cpu")(IMAGE)
    assert refused > rounds // 2


def test_foreign_files_with_numbers_of_any_byte_order(tmp_path: Path) -> None:
    network = foreign.small_network()
    state = {k: v.numpy().astype(">f4") for k, v in foreign.adelaidet(network).items()}
    content = convert(foreign.save({"model": state}, tmp_path / "x.pth"))
    weight = content["state_dict"]["network.head.controller.weight"]
    assert torch.equal(weight, network.head.controller.weight)
