"""Winograd's 3x3 convolution against the plain one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.published import published_form
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from condseg import native
from condseg.layers import ODConv2d, to_dynamic, winograd
from condseg.layers.winograd import Conv3x3, conv3x3, conv3x3_maps, use_conv3x3_
from condseg.structures import Size

pytestmark = pytest.mark.skipif(
    not native.available(), reason="needs Linux, AVX2 and a C++ compiler"
)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use Winograd for any number of channels and tiles."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 0)
    monkeypatch.setattr(winograd, "MIN_TILES", 0)


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, torch.linspace(-1, 2, y.numel()).view_as(y).to(y))


def worst(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Largest relative L2 distance; norms below 1 count as 1."""
    pairs = [(g.detach().double(), w.detach()) for g, w in zip(got, want, strict=True)]
    return max(float((g - w).norm() / w.norm().clamp(min=1)) for g, w in pairs)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def check(channels: tuple[int, int], sizes: Sequence[Size], batch: int, bias: bool) -> None:
    torch.manual_seed(0)
    kernels = [torch.randn(channels[1], channels[0], 3, 3)]
    kernels += [torch.randn(channels[1])] if bias else []
    maps = [channels_last(batch, channels[0], *size) for size in sizes]
    exact = [t.double().requires_grad_() for t in (*kernels, *maps)]
    single = [t.requires_grad_() for t in (*kernels, *maps)]
    results = conv3x3_maps(maps, *kernels)
    for x, y in zip(maps, results, strict=True):
        assert "Winograd" in str(y.grad_fn)
        assert torch.equal(y, F.conv2d(x, *kernels, padding=1))  # only gradients use Winograd
    with torch.no_grad():
        alone = conv3x3_maps(maps, *kernels)
    expected = [F.conv2d(x, *exact[: len(kernels)], padding=1) for x in exact[len(kernels) :]]
    got = (*alone, *gradients(flat(results), *single))
    assert worst(got, (*expected, *gradients(flat(expected), *exact))) <= 1e-5


def flat(results: Sequence[Tensor]) -> Tensor:
    return torch.cat([y.flatten() for y in results])


@settings(deadline=None, max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sizes=st.lists(st.tuples(st.integers(1, 21), st.integers(1, 21)), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    bias=st.booleans(),
)
def test_output_and_gradients(
    channels: tuple[int, int], sizes: list[Size], batch: int, bias: bool
) -> None:
    check(channels, sizes, batch, bias)


def test_more_than_a_block_of_kernels_and_tiles() -> None:
    check((530, 200), [(57, 63)], 1, True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_anywhere_in_memory(layout: torch.memory_format) -> None:
    x, weight = channels_last(2, 5, 9, 8), torch.randn(2, 4, 5, 3, 3)[1].to(memory_format=layout)
    for kernel in (weight, weight.flip(3).transpose(2, 3)):
        expected = F.conv2d(x.double(), kernel.double(), padding=1)
        with torch.no_grad():
            assert worst((conv3x3(x, kernel),), (expected,)) <= 1e-5


def test_rounding() -> None:
    torch.manual_seed(0)
    x, weight = channels_last(1, 128, 32, 48).relu(), torch.randn(128, 128, 3, 3) / 34
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    with torch.no_grad():
        assert worst((conv3x3(x, weight),), (exact,)) <= 2e-6


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_result(wanted: int) -> None:
    torch.manual_seed(0)
    maps, weight = [channels_last(1, 3, 6, 9), channels_last(1, 3, 4, 4)], torch.randn(4, 3, 3, 3)
    leaves = [weight.requires_grad_(), *(x.requires_grad_() for x in maps)]
    got = gradients(conv3x3_maps(maps, weight)[wanted], *leaves)
    want = gradients(F.conv2d(maps[wanted], weight, padding=1), weight, maps[wanted])
    assert worst((got[0], got[1 + wanted]), tuple(w.double() for w in want)) <= 1e-5
    assert not got[2 - wanted].any()


@pytest.mark.parametrize("wanted", range(3))
def test_gradient_of_one_input(wanted: int) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(2, 3, 6, 9), torch.randn(4, 3, 3, 3), torch.randn(4)]
    leaves[wanted].requires_grad_()
    got = gradients(conv3x3(*leaves), leaves[wanted])
    want = gradients(F.conv2d(*leaves, padding=1), leaves[wanted])
    assert worst(got, tuple(w.double() for w in want)) <= 1e-5


def test_fewer_multiplications() -> None:
    x, weight = channels_last(1, 128, 64, 64), torch.randn(128, 128, 3, 3)
    with torch.no_grad():
        with FlopCounterMode(display=False) as plain:
            F.conv2d(x, weight, padding=1)
        with FlopCounterMode(display=False) as fast:
            conv3x3(x, weight)
    assert fast.get_total_flops() < 0.5 * plain.get_total_flops()


def test_where_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow or small maps, other precisions, autocast; without gradients, other layouts."""
    x, weight = torch.randn(1, 8, 16, 16), torch.randn(8, 8, 3, 3, requires_grad=True)

    def taken() -> bool:
        return "Winograd" in str(conv3x3(x, weight).grad_fn)

    assert taken()
    with torch.no_grad():
        plain = F.conv2d(x, weight, padding=1)
        assert torch.equal(conv3x3(x, weight), plain)
        with monkeypatch.context() as patch:
            patch.setattr(winograd, "MIN_TILES_CONTIGUOUS", 16)  # of a map of 16x16
            y = conv3x3(x, weight)
    assert not torch.equal(y, plain)
    assert worst((y,), (plain.double(),)) <= 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken()
    assert "Winograd" not in str(conv3x3(x.double(), weight.double()).grad_fn)
    for name in ("MIN_CHANNELS", "MIN_TILES"):
        with monkeypatch.context() as patch:
            patch.setattr(winograd, name, 17)
            assert not taken()
    monkeypatch.setattr(native, "available", lambda: False)
    assert not taken()


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_autocast_without_gradients(matrix_unit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MATRIX_UNIT", matrix_unit)
    torch.manual_seed(0)
    x, weight, bias = (
        channels_last(2, 8, 12, 16).bfloat16(),
        torch.randn(8, 8, 3, 3),
        torch.randn(8),
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y = conv3x3(x, weight, bias)
    assert y.dtype == (torch.bfloat16 if matrix_unit else torch.float32)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert worst((y,), (exact,)) <= (1e-2 if matrix_unit else 1e-5)


def test_use_conv3x3() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding="same", bias=False).requires_grad_(False)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        conv,
        nn.Sequential(conv),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 1),
    ).eval()
    x, plain = channels_last(2, 3, 24, 24), copy.deepcopy(network)
    parameters = list(network.parameters())
    state = torch.get_rng_state()
    assert use_conv3x3_(network) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) is Conv3x3 for m in network] == [True, True, *[False] * 7]
    assert network[1] is network[2][0]
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert not network[0].training
    want, several = plain(x), [x, x[:, :, :5]]
    with torch.no_grad():
        assert worst((network(x),), (want.double(),)) <= 1e-5
        assert worst(network[0](several), [plain[0](y).double() for y in several]) <= 1e-5
    assert len(to_dynamic(network, ODConv2d, where=lambda name, _: name == "1")) == 1
    assert isinstance(network[1], ODConv2d)


def test_dynamic_kernels() -> None:
    torch.manual_seed(0)
    fast = ODConv2d(6, 8, 3, padding=1, num_experts=2).eval()
    reference = published_form(fast)
    x = channels_last(2, 6, 12, 16)
    assert "Winograd" in graph(fast(x))
    with torch.no_grad():
        assert worst((fast(x),), (reference(x).double(),)) <= 1e-5


def graph(y: Tensor) -> str:
    """Names of the functions that computed a tensor."""
    names, waiting = [], [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.append(node.name())
            waiting += [before for before, _ in node.next_functions]
    return " ".join(names)


def test_an_exported_graph_has_no_operator_of_condseg() -> None:
    conv, x = Conv3x3(128, 128), channels_last(1, 128, 32, 48)
    with torch.no_grad():
        graph = torch.export.export(conv, (x,)).graph
    assert not [node for node in graph.nodes if "condseg" in str(node.target)]
