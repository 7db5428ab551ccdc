"""The checks that every layer of the family passes; a new layer is one line in LAYERS.

Above 300 lines: all checks of the family are in this one file.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies.published import published_form
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import condseg.layers
from condseg.layers import (
    CondConv2d,
    ConvSlot,
    DeformConv2d,
    DyConv2d,
    DynamicConv2d,
    DyNetConv2d,
    ODConv2d,
    set_temperature,
)
from condseg.layers.slot import PADDING_MODES

few = settings(max_examples=15, deadline=None, derandomize=True)
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
LAYERS: dict[str, tuple[type[ConvSlot], dict[str, Any]]] = {
    "odconv1": (ODConv2d, {"num_experts": 1}),
    "odconv4": (ODConv2d, {"num_experts": 4}),
    "odconv_layernorm": (ODConv2d, {"num_experts": 2, "norm": "layer"}),
    "dyconv": (DyConv2d, {"temperature": 31.0}),
    "condconv": (CondConv2d, {}),
    "condconv3": (CondConv2d, {"num_experts": 3}),
    "dynet": (DyNetConv2d, {"dropout": 0.0}),
    "dfn": (DynamicConv2d, {}),
    "deform": (DeformConv2d, {}),
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "1x1_grouped_strided_padded": {"kernel_size": 1, "stride": 2, "padding": 1, "groups": 2},
    "3x1_strided": {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)},
    "dilated_grouped": {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4, "out_channels": 4, "bias": False},
    "depthwise_multiplied": {"kernel_size": 3, "groups": 4, "out_channels": 8, "stride": 2},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": (1, 3), "padding": (0, 1), "padding_mode": "circular"},
    "same": {"kernel_size": (4, 2), "padding": "same", "padding_mode": "replicate"},
    "valid": {"kernel_size": 2, "padding": "valid"},
}
SOME = ["3x3", "1x1_grouped_strided_padded", "depthwise", "same"]
layers = pytest.mark.parametrize("layer", LAYERS)
with_kernels = pytest.mark.parametrize("layer", [name for name in LAYERS if name != "deform"])
some_geometries = pytest.mark.parametrize("geometry", SOME)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def place(geometry: str) -> dict[str, Any]:
    return {"in_channels": 4, "out_channels": 6} | GEOMETRIES[geometry]


def build(layer: str, geometry: str = "3x3") -> ConvSlot:
    torch.manual_seed(0)
    cls, options = LAYERS[layer]
    built = cls(**place(geometry), **options)
    if isinstance(built, DeformConv2d):  # zero offsets are at a kink of the interpolation
        for parameter in built.offset.parameters():
            nn.init.normal_(parameter, std=0.3)
    return built


def images(batch: int = 3, size: tuple[int, int] = (7, 8)) -> Tensor:
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(1))


@layers
@geometries
def test_shape_and_static_start(layer: str, geometry: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(**place(geometry))
    cls, options = LAYERS[layer]
    x = images() * 3
    expected = conv(x)
    assert build(layer, geometry)(x).shape == expected.shape
    dynamic = cls.from_static(conv, **options)
    for mode in (True, False):
        torch.testing.assert_close(dynamic.train(mode)(x), expected, rtol=1e-5, atol=1e-5)


@with_kernels
@few
@given(
    batch=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel_size=pair,
    place=st.fixed_dictionaries(
        {
            "stride": pair,
            "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
            "dilation": pair,
            "groups": st.integers(1, 3),
            "bias": st.booleans(),
            "padding_mode": st.sampled_from(PADDING_MODES),
        }
    ),
    size=st.sampled_from([(8, 7), (40, 30)]),
)
def test_fast_and_published_and_static_forms(
    layer: str,
    batch: int,
    per_group: tuple[int, int],
    kernel_size: tuple[int, int],
    place: dict[str, Any],
    size: tuple[int, int],
) -> None:
    """Equal outputs and gradients; each sample's kernel in a static convolution, equal outputs."""
    torch.manual_seed(0)
    channels = [place["groups"] * n for n in per_group]
    cls, options = LAYERS[layer]
    fast = cls(*channels, kernel_size, **place, **options).double().eval()
    x = torch.randn(batch, channels[0], *size, dtype=torch.float64, requires_grad=True)
    results = []
    for form in (fast, published_form(fast)):
        y = form(x)
        cotangent = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        results.append((y, *torch.autograd.grad(y, [x, *form.parameters()], cotangent)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    kernels, biases = fast.kernel_and_bias(x)
    assert (biases is None) == (not place["bias"])
    for i in range(batch):
        static = fast.to_static(kernels[i], None if biases is None else biases[i])
        torch.testing.assert_close(static(x[i : i + 1])[0], results[0][0][i])


@pytest.mark.parametrize("layer", ["odconv1", "odconv4", "dyconv", "condconv", "dynet"])
def test_kernel_is_the_attended_mixture(layer: str) -> None:
    dynamic, x = build(layer, "3x3").eval(), images()
    kernels, biases = dynamic.kernel_and_bias(x)
    attentions, experts = dynamic.attentions(x), dynamic.get_parameter("weight")
    mixture = attentions.get("kernel", torch.ones(len(x), 1))
    if isinstance(dynamic, DyNetConv2d):
        expected = torch.einsum("beo,eoikl->boikl", dynamic.coefficients(x), experts)
    else:
        expected = torch.einsum("be,eoikl->boikl", mixture, experts)
    if isinstance(dynamic, ODConv2d):
        spatial = attentions["spatial"].unflatten(1, (3, 3))
        factors = attentions["filter"], attentions["channel"], spatial
        expected = torch.einsum("boikl,bo,bi,bkl->boikl", expected, *factors)
    torch.testing.assert_close(kernels, expected)
    own = dynamic.bias
    if own.dim() == 2:
        own = mixture @ own
    torch.testing.assert_close(biases, own.expand(len(x), -1))


@layers
def test_static_start_whatever_the_temperature(layer: str) -> None:
    cls, options = LAYERS[layer]
    conv = nn.Conv2d(**place("3x3"))
    dynamic, x = cls.from_static(conv, **options), images()
    set_temperature(dynamic, 7)
    torch.testing.assert_close(dynamic(x), conv(x), rtol=1e-5, atol=1e-5)


HEADS = {
    "odconv4": "attention.kernel_fc",
    "odconv_layernorm": "attention.kernel_fc",
    "dyconv": "attention.fc2",
    "condconv": "routing_fn",
    "condconv3": "routing_fn",
    "dynet": "coefficient_fn",
}
with_experts = pytest.mark.parametrize("layer", HEADS)


@with_experts
@pytest.mark.parametrize("spread", [0.0, 0.03, 1.0])
def test_experts_lie_around_the_static_kernel(layer: str, spread: float) -> None:
    torch.manual_seed(0)
    cls, options = LAYERS[layer]
    conv, x = nn.Conv2d(**place("3x3")), images() * 3
    dynamic = cls.from_static(conv, spread=spread, **options)
    torch.testing.assert_close(dynamic(x), conv(x), rtol=1e-5, atol=1e-5)
    experts = dynamic.get_parameter("weight").detach()
    scale = (experts.mean(0) / conv.weight).mean()
    torch.testing.assert_close(experts.mean(0), conv.weight * scale, rtol=1e-4, atol=1e-5)
    away = (experts - experts.mean(0)).flatten(2).square().mean((0, 2)).sqrt()
    size = experts.mean(0).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(away / size, torch.full((6,), spread), rtol=0.3, atol=1e-5)


@with_experts
def test_experts_part_after_the_static_start(layer: str) -> None:
    """Attention learns from the first step, and from the second no two experts learn the same."""
    torch.manual_seed(0)
    cls, options = LAYERS[layer]
    dynamic = cls.from_static(nn.Conv2d(**place("3x3")), **options)
    dynamic = dynamic.eval()  # a batch norm of three samples is mostly noise
    set_temperature(dynamic, 1)
    optimizer = torch.optim.SGD(dynamic.parameters(), 1.0)
    experts, head = dynamic.get_parameter("weight"), dynamic.get_submodule(HEADS[layer])
    for _ in range(2):
        optimizer.zero_grad()
        dynamic(images()).square().mean().backward()
        assert head.weight.grad.norm() > 1e-6
        optimizer.step()
    grads, num = experts.grad.flatten(1), len(experts)
    assert all(
        (grads[i] - grads[j]).norm() > 1e-6 * grads[i].norm() for i in range(num) for j in range(i)
    )


@pytest.mark.parametrize("layer", ["odconv4", "dyconv", "dynet"])
def test_between_equal_experts_attention_does_not_learn(layer: str) -> None:
    cls, options = LAYERS[layer]
    dynamic = cls.from_static(nn.Conv2d(**place("3x3")), spread=0.0, **options)
    dynamic(images()).square().mean().backward()
    assert dynamic.get_submodule(HEADS[layer]).weight.grad.norm() < 1e-7
    with pytest.raises(ValueError, match=r"spread=-1\.0"):
        dynamic.copy_static_(nn.Conv2d(**place("3x3")), -1.0)


@layers
def test_static_start_keeps_device_dtype_mode_and_freezing(layer: str) -> None:
    cls, options = LAYERS[layer]
    conv = nn.Conv2d(**place("3x3")).double().eval().requires_grad_(False)
    dynamic = cls.from_static(conv, **options)
    assert not dynamic.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in dynamic.parameters())


@layers
@geometries
def test_one_sample_alone_is_the_same_in_a_batch(layer: str, geometry: str) -> None:
    dynamic, x = build(layer, geometry).eval(), images()
    together = dynamic(x)
    for i in range(len(x)):
        torch.testing.assert_close(dynamic(x[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)


@layers
@pytest.mark.parametrize("geometry", ["3x3", "1x1_grouped_strided_padded", "depthwise"])
@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(layer: str, geometry: str, training: bool) -> None:
    dynamic = build(layer, geometry).double().train(training)
    x = images(2, (5, 4)).double().requires_grad_()
    names, values = zip(*dynamic.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(dynamic, state, (x,))

    torch.autograd.gradcheck(function, (x, *values), fast_mode=True, atol=1e-6)


@layers
@some_geometries
def test_channels_last(layer: str, geometry: str) -> None:
    dynamic, x = build(layer, geometry).eval(), images().requires_grad_()
    expected = dynamic(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    dynamic.to(memory_format=torch.channels_last)
    y = dynamic(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    (other,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)


@layers
@some_geometries
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_autocast(layer: str, geometry: str, dtype: torch.dtype, bound: float) -> None:
    dynamic, x = build(layer, geometry).eval(), images().requires_grad_()
    expected = dynamic(x)
    with torch.autocast("cpu", dtype):
        y = dynamic(x)
        again = dynamic(y.detach()[:, :4].contiguous())
    assert y.dtype == again.dtype == dtype
    assert (y - expected).norm() < bound * expected.norm()
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in dynamic.parameters())


@with_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_stays_fp32_under_autocast(layer: str, dtype: torch.dtype) -> None:
    """The coefficients of a low-precision run are those of the fp32 run on the rounded map."""
    dynamic, x = build(layer).eval(), images().to(dtype)
    seen: list[Tensor] = []
    heads = [m for m in dynamic.modules() if isinstance(m, nn.Linear) or hasattr(m, "kernel_shape")]
    heads += [m for m in dynamic.modules() if type(m).__name__ == "Linear1x1"]
    for head in heads:
        if head is not dynamic:
            head.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.autocast("cpu", dtype):
        dynamic(x)
    low, seen[:] = list(seen), []
    dynamic(x.float())
    assert seen
    for a, b in zip(low, seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@layers
@some_geometries
@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(layer: str, geometry: str, training: bool) -> None:
    dynamic = build(layer, geometry).train(training)
    x = images(0).requires_grad_()
    y = dynamic(x)
    assert y.shape == nn.Conv2d(**place(geometry))(x).shape
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in dynamic.parameters())


@layers
def test_runs_without_memory(layer: str) -> None:
    with torch.device("meta"):
        dynamic, x = build(layer), torch.randn(2, 4, 7, 8)
    assert dynamic(x).shape == (2, 6, 7, 8)


@layers
def test_state_dict_round_trip(layer: str) -> None:
    dynamic, x = build(layer).eval(), images()
    set_temperature(dynamic, 13)
    buffer = io.BytesIO()
    torch.save(dynamic.state_dict(), buffer)
    buffer.seek(0)
    other = build(layer).eval()
    for parameter in other.parameters():
        nn.init.ones_(parameter)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    for same in (other, copy.deepcopy(dynamic)):
        torch.testing.assert_close(same(x), dynamic(x), rtol=0, atol=0)


@layers
def test_attention_parameters(layer: str) -> None:
    """Exactly those whose change alters the attentions; experts and bias are the others."""
    dynamic, x = build(layer).eval(), images()
    set_temperature(dynamic, 1)
    before = dynamic.attentions(x)
    assert all(values.shape[0] == len(x) and values.dim() == 2 for values in before.values())
    assert bool(before) == (layer not in ("dfn", "deform"))
    found = {id(parameter) for parameter in dynamic.attention_parameters()}
    for parameter in dynamic.parameters():
        kept = parameter.detach().clone()
        nn.init.normal_(parameter)
        after = dynamic.attentions(x)
        altered = any(not torch.equal(after[axis], values) for axis, values in before.items())
        assert altered == (id(parameter) in found)
        parameter.data.copy_(kept)


@layers
@pytest.mark.parametrize("geometry", ["3x3", "1x1", "depthwise_multiplied"])
def test_fold_norm(layer: str, geometry: str) -> None:
    dynamic, x = build(layer, geometry).eval(), images()
    norm = nn.BatchNorm2d(dynamic.out_channels).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2)
    before, expected = dynamic(x), norm(dynamic(x))
    folds = layer.startswith(("odconv", "dyconv", "dynet"))
    assert dynamic.fold_norm_(norm) == folds
    torch.testing.assert_close(dynamic(x), expected if folds else before, rtol=1e-5, atol=1e-5)


@layers
def test_batch_of_one_value_trains(layer: str) -> None:
    dynamic = build(layer, "1x1").train()
    before = {k: v.clone() for k, v in dynamic.state_dict().items() if "running" in k}
    y = dynamic(images(1, (1, 1)))
    y.sum().backward()
    assert y.isfinite().all()
    for key, value in before.items():
        assert torch.equal(dynamic.state_dict()[key], value)


@pytest.fixture
def _alone() -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@layers
@pytest.mark.usefixtures("_alone")
def test_trains_in_ddp(layer: str) -> None:
    """Every parameter takes part in every step: DDP waits for none, batch of one included."""
    dynamic = build(layer)
    alone = copy.deepcopy(dynamic)
    wrapped = DistributedDataParallel(dynamic)
    for batch in (3, 1, 2):
        for network in (wrapped, alone):
            network(images(batch)).square().sum().backward()
    for ours, theirs in zip(dynamic.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@layers
def test_moving_average(layer: str) -> None:
    dynamic, x = build(layer).eval(), images()
    average = AveragedModel(dynamic, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(dynamic)
    torch.testing.assert_close(average(x), dynamic(x))
    before = [p.detach().clone() for p in dynamic.parameters()]
    with torch.no_grad():
        for parameter in dynamic.parameters():
            parameter += 1
    average.update_parameters(dynamic)
    for mean, old in zip(average.module.parameters(), before, strict=True):
        torch.testing.assert_close(mean, old + 0.25)


@pytest.fixture
def _unchecked() -> Iterator[None]:
    """The shape checks of the test run are not code that a user compiles."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


@layers
@pytest.mark.usefixtures("_unchecked")
def test_compiles_in_one_graph(layer: str) -> None:
    for geometry in ("3x3", "1x1"):
        dynamic, x = build(layer, geometry), images()
        compiled = torch.compile(dynamic, backend="aot_eager", fullgraph=True)
        expected = dynamic.eval()(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@layers
@pytest.mark.usefixtures("_unchecked")
def test_compiles_to_machine_code(layer: str) -> None:
    dynamic, x = build(layer), images()
    torch.compile(dynamic)(x).sum().backward()


@layers
@pytest.mark.usefixtures("_unchecked")
def test_exports(layer: str) -> None:
    dynamic, x = build(layer).eval(), images()
    program = torch.export.export(dynamic, (x,))
    torch.testing.assert_close(program.module()(x), dynamic(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in condseg.layers.__all__ if n[-2:] in ("1d", "3d")])
@pytest.mark.usefixtures("_unchecked")
def test_other_dimensions_compile_and_export(name: str) -> None:
    dims = int(name[-2])
    layer = getattr(condseg.layers, name)(4, 6, 3, padding=1, groups=2).eval()
    x = torch.randn(2, 4, *(5, 6, 7)[:dims])
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)


@layers
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"groups": 3}, "divisible by groups=3"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"stride": 0}, "stride=0"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding": "same", "stride": 2}, "padding='same'"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
    ],
)
def test_says_what_is_wrong(layer: str, wrong: dict[str, Any], message: str) -> None:
    cls, options = LAYERS[layer]
    with pytest.raises(ValueError, match=message):
        cls(**(place("3x3") | wrong), **options)


@layers
def test_refuses_another_shape(layer: str) -> None:
    with pytest.raises(ValueError, match="kernel"):
        build(layer).copy_static_(nn.Conv2d(4, 6, 5))
    with pytest.raises(ValueError, match="plain convolution"):
        build(layer).copy_static_(nn.Linear(4, 6))
