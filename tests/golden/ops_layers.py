"""Golden handlers of ``condseg.layers``: each builds our layer from the case's options."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from studies.published import published_form
from torch import Tensor, nn
from vectors import Case, handles, judges

from condseg.layers import (
    CondConv2d,
    ConvSlot,
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

OUT = 1e-5
RENAMED = {
    "in_planes": "in_channels",
    "out_planes": "out_channels",
    "kernel_num": "num_experts",
    "K": "num_experts",
    "ratio": "reduction",
    "dropout_rate": "dropout",
}
"""Options of the official layers -> ours; the others have the same names."""


def build(cls: type[ConvSlot], case: Case, **more: Any) -> ConvSlot:
    """The layer of all options of the case, in the case's mode."""
    options = {RENAMED.get(name, name): value for name, value in case.args.items()}
    if "temperature" in options:
        options["temperature"] = float(options["temperature"])
    training = options.pop("mode", "eval") == "train"
    return cls(**options, **more).train(training)


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


def check_output(case: Case, y: Tensor, tensors: dict[str, Tensor]) -> None:
    """The output, and all gradients of its product with the stored cotangent."""
    case.check("out.y", y, rel=OUT)
    case.check_gradients((y * case.inputs["cot"]).sum(), tensors)


@handles("ODConv2d", mode={"eval", "train"})
def odconv(case: Case) -> None:
    layer = build(ODConv2d, case, bias=False)
    tensors = fill(layer, case.param) | case.leaves("x")
    seen: list[Any] = []
    layer.attention.register_forward_hook(lambda module, args, out: seen.append(out))
    y = layer(tensors["x"])
    attention = {f"att_{n}": a for n, a in seen[0]._asdict().items() if a is not None}
    assert set(attention) == {name for name in case.out if name.startswith("att_")}
    for name, value in attention.items():
        case.check(f"out.{name}", value, rel=OUT)
    if layer.training:
        for name in ("running_mean", "running_var"):
            statistics = layer.attention.bn.get_buffer(name)
            case.check(f"out.bn_{name}", statistics, absolute=1e-6)
    check_output(case, y, tensors)


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
    recorded={"max_abs_diff_to_float64", "logit_std_T1", "logit_std_T31"},
    mode={"eval"},
)
def od_networks(case: Case) -> None:
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
    for part in parts:
        net.get_submodule(part).register_forward_hook(
            lambda module, args, out, part=part: seen.__setitem__(part, out)
        )
    rel = 2e-3 if case.op == "od_resnet50" else 1e-3

    def check_by_std(array: str, value: Tensor) -> None:
        case.check(array, value, absolute=rel * case.expected(array).std().item())

    check_by_std("out.logits_T1", net(case.inputs["x"]))
    for part in parts:
        check_by_std(f"out.{part}", seen[part])
    set_temperature(net, 31)
    with torch.no_grad():
        check_by_std("out.logits_T31", net(case.inputs["x"]))
    set_temperature(net, 1)
    # A ReLU may be within 1e-7 of its kink; the order of additions then decides its side and moves
    # the gradient by up to 10 %. The published form has the official order, given the recorded
    # number of threads; where a machine adds differently all the same, float64 may agree.
    published, expected = published_form(net), torch.as_tensor(case.expected("grad_in.x"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    candidates = [network_gradients(published, case)]
    torch.set_num_threads(threads)
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


@handles("Dynamic_conv2d")
def dyconv(case: Case) -> None:
    layer = build(DyConv2d, case)
    tensors = fill(layer, case.param) | case.leaves("x")
    case.check("out.attention", layer.attention(tensors["x"], layer.temperature), rel=OUT)
    check_output(case, layer(tensors["x"]), tensors)


@handles("CondConv2d", recorded={"weight_shape_5d"})
def condconv(case: Case) -> None:
    layer = build(CondConv2d, case)
    tensors = fill(layer, case.param, {r"^conv\.": ""}) | case.leaves("x")
    case.check("out.routing", layer.routing_weights(tensors["x"]), rel=OUT)
    check_output(case, layer(tensors["x"]), tensors)


@handles("DyNet2D", mode={"eval"})
def dynet(case: Case) -> None:
    for mixing in ("features", "kernels"):
        layer = build(DyNetConv2d, case, mixing=mixing)
        spelling = {r"^_coefficient_fn\.fc": "coefficient_fn"}
        tensors = fill(layer, case.param, spelling) | case.leaves("x")
        case.check("out.coefficients", layer.coefficients(tensors["x"]), rel=OUT)
        check_output(case, layer(tensors["x"]), tensors)


HDFNET: dict[str, tuple[Any, tuple[str, ...], dict[str, str]]] = {
    **{
        f"DepthDC3x3_{d}": (
            partial(DynamicDilatedFilter2d, dilation=d),
            ("x", "y"),
            {"down_factor": "steps"},
        )
        for d in (1, 3, 5)
    },
    "DDPM": (
        DynamicDilatedPyramid2d,
        ("x", "y"),
        {"kernel_size": "kernel_size", "down_factor": "steps"},
    ),
    "DenseLayer": (DenseLayer2d, ("x",), {"down_factor": "reduction", "k": "steps"}),
    "DenseTransLayer": (DenseTransport2d, ("rgb", "depth"), {}),
}
"""Op -> our layer, its inputs, and the keyword arguments of the official layer -> ours."""


@handles(*HDFNET, mode={"eval"})
def hdfnet(case: Case) -> None:
    cls, inputs, names = HDFNET[case.op]
    options = {names[name]: value for name, value in case.args["kwargs"].items()}
    layer = cls(*case.args["args"], **options).eval()
    tensors = fill(layer, case.param, {"gernerate_kernel": "generate_kernel"})
    tensors |= case.leaves(*inputs)
    if isinstance(layer, DynamicDilatedFilter2d):
        kernels = layer.kernels(tensors["y"])
        case.check("out.kernel", kernels, rel=OUT)
        case.check("out.filtered", layer.filter(tensors["x"], kernels), rel=OUT)
    check_output(case, layer(*(tensors[name] for name in inputs)), tensors)


@handles("HEL", recorded={"kind"})
def hel(case: Case) -> None:
    inputs = case.leaves("pred")
    result = hybrid_enhanced_loss(inputs["pred"], case.inputs["target"])
    case.check("out.loss", result.loss, rel=OUT)
    case.check("out.edge_loss", result.edge, rel=OUT)
    case.check("out.region_loss", result.region, rel=OUT)
    case.check_gradients(result.loss, inputs)


NORMS = {"BN": "batch", None: "none"}


@handles("DCM", norm=set(NORMS), act={"ReLU"}, mode={"eval"})
def dcm(case: Case) -> None:
    layer = DynamicContextFilter2d(
        case.args["in_channels"],
        case.args["channels"],
        case.args["filter_size"],
        fusion=case.args["fusion"],
        norm=NORMS[case.args["norm"]],
    ).eval()
    tensors = fill(layer, case.param) | case.leaves("x")
    case.check("out.generated_filter", layer.filters(tensors["x"]), rel=OUT)
    check_output(case, layer(tensors["x"]), tensors)


@handles("DMHead", mode={"eval"})
def dm_head(case: Case) -> None:
    """The module and a classifier, as the segmentation head has them."""
    channels = case.args["channels"]
    filtering = DynamicMultiScaleFilter2d(
        case.args["in_channels"],
        out_channels=channels,
        filter_sizes=case.args["filter_sizes"],
        fusion=case.args["fusion"],
    )
    head = nn.Sequential(filtering, nn.Conv2d(channels, case.args["num_classes"], 1)).eval()
    spelling = {r"^(?=dcm_modules|bottleneck)": "0.", "^conv_seg": "1"}
    tensors = fill(head, case.param, spelling) | case.leaves("x")
    check_output(case, head(tensors["x"]), tensors)


@handles(
    "dynamic_filter", mode={"joint", "shared", "perchannel", "global"}, padding={"same (zero)"}
)
def dynamic_filter(case: Case) -> None:
    k, mode, tensors = case.args["kernel_size"], case.args["mode"], case.leaves("x", "filters")
    x, filters = tensors.values()
    if mode == "global":
        kernel = filters.view(x.shape[0], 1, x.shape[1], k, k)
        y = conv_per_sample(x, kernel, padding=(k // 2, k // 2))
    else:
        y = dynamic_local_filter(x, filters, (k, k), mode)
    case.check("out.y", y, rel=1e-6)
    case.check_gradients((y * case.inputs["cot"]).sum(), tensors, rel=1e-5)
