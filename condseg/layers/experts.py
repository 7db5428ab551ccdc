"""Base of the convolutions that mix experts, and the scale at which they learn."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from condseg.layers.parts import check_count
from condseg.layers.slot import ConvSlot

NATURAL_SCALE = ".natural_scale"
"""End of the key in a network's state that says that a layer is at natural scale."""


class ExpertConv(ConvSlot):
    r"""Base of the layers with kernel :math:`\sum_e a_e(x)\, W_e`.

    A layer that started from static weights is at *natural scale*: a step of any optimizer moves
    its kernel as it would move the static kernel. Two things make it so. First, the attentions are
    scaled such that they start with :math:`\sum_e a_e = 1` and every expert starts as the static
    kernel; then a step of AdamW, which is as long for an expert as for a static kernel, and weight
    decay have the same effect on the kernel. Second, the gradient of each of the E experts, which
    is 1/E of the kernel's, is multiplied by E; then a step of SGD has the same effect too.

    Otherwise (a layer initialised by itself, or published weights) the scale is the published one.

    Args:
        conv, conv_options: ``nn.Conv2d``'s arguments, see :class:`ConvSlot`.
        num_experts: kernels that are mixed.

    Attributes:
        natural_scale: whether the layer started from static weights; an entry of its state if so.
    """

    weight: nn.Parameter

    def __init__(self, *conv: Any, num_experts: int, **conv_options: Any) -> None:
        super().__init__(*conv, **conv_options)
        check_count(num_experts=num_experts)
        self.num_experts = num_experts
        self.weight = nn.Parameter(torch.empty(num_experts, *self.kernel_shape))
        self.natural_scale = False

    def heads(self) -> list[nn.Module]:
        """The linear layers that compute the attentions' logits."""
        raise NotImplementedError

    @property
    def attention_lr(self) -> float:
        """At natural scale 1 / (2 n) for heads with n inputs, otherwise 1.

        A step moves a head's logits in proportion to n. With this factor the attentions change
        the kernel by a small part of what the experts' own step changes it, for every n.
        """
        inputs = self.heads()[0].get_parameter("weight").shape[1]
        return 0.5 / inputs if self.natural_scale else 1.0

    def experts(self, parameter: Tensor) -> Tensor:
        """Experts' kernels or biases (E, O, ...), with the gradient of the layer's scale."""
        if not self.natural_scale or self.num_experts == 1 or not torch.is_grad_enabled():
            return parameter
        scaled: Tensor = _ScaledGradient.apply(parameter, self.num_experts)
        return scaled

    def copy_static_(self, conv: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().copy_static_(conv, *args, **kwargs)
        self.natural_scale = True

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        for head in self.heads():
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        size = weight.square().mean(tuple(range(1, weight.dim())), keepdim=True).sqrt()
        offsets = torch.randn_like(self.weight)
        offsets = (offsets - offsets.mean(0)) * (len(offsets) / max(len(offsets) - 1, 1)) ** 0.5
        self.weight.copy_(weight + spread * size * offsets)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._save_to_state_dict(destination, prefix, *args, **kwargs)
        if self.natural_scale:
            destination[prefix + "natural_scale"] = torch.tensor(True)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.natural_scale = bool(state_dict.pop(prefix + "natural_scale", False))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    # Dynamo cannot trace the type checks of the tests in these.
    @staticmethod
    @no_type_check
    def forward(x: Tensor, factor: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @no_type_check
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    @no_type_check
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
