"""Base of the dynamic convolutions: nn.Conv2d's arguments, padding, start from static weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from condseg.layers.parts import positive
from condseg.layers.per_sample import conv_per_sample
from condseg.layers.plain import STATIC, geometry, is_static, place_like, timm_same_conv

Sizes = int | tuple[int, ...]
Slot = TypeVar("Slot", bound="ConvSlot")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
SPREAD = 0.03


class ConvSlot(nn.Module):
    """Base of the layers that can replace an ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias: as in ``nn.Conv2d``.
        padding: pixels on both sides, ``"valid"``, ``"same"``, or ``"tf_same"`` (TensorFlow's
            SAME, which depends on the size of the input; the output has size ceil(size / stride)).
        padding_mode: zeros, reflect, replicate or circular.

    Shape:
        (B, C, H, W) -> (B, O, H_out, W_out), as ``nn.Conv2d``; B may be 0.

    Raises:
        ValueError: an argument is one that ``nn.Conv2d`` refuses.
    """

    bias: Tensor | None
    dims: ClassVar[int] = 2
    folds_norms: ClassVar[bool] = False
    """Whether a batch norm of the output folds into experts and bias."""
    attention_module: ClassVar[str | None] = None
    """Name of the submodule that computes the attentions; None without attentions."""
    paper_blocks: ClassVar[int | None] = None
    """Number of the network's last blocks that are dynamic in the paper; None for all."""
    paper_shortcuts: ClassVar[bool] = False
    """Whether convolutions of shortcuts are dynamic in the paper."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        positive(in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}={channels} must be divisible by groups={groups}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r} must be one of {PADDING_MODES}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = self._sizes("kernel_size", kernel_size, 1)
        self.stride = self._sizes("stride", stride, 1)
        self.dilation = self._sizes("dilation", dilation, 1)
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            if padding not in ("valid", "same", "tf_same"):
                raise ValueError(f"padding={padding!r} must be sizes, 'valid', 'same' or 'tf_same'")
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"padding='same' needs stride 1, not {stride}; or 'tf_same'")
            self.padding = padding
        else:
            self.padding = self._sizes("padding", padding, 0)
        self.padding_mode, self.has_bias = padding_mode, bias

    def _sizes(self, name: str, value: Sizes, smallest: int) -> tuple[int, ...]:
        sizes = (value,) * self.dims if isinstance(value, int) else tuple(value)
        if len(sizes) != self.dims or any(s < smallest for s in sizes):
            raise ValueError(f"{name}={value} must be {self.dims} integers >= {smallest}")
        return sizes

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of one kernel, that of ``nn.Conv2d.weight``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def depthwise(self) -> bool:
        return self.in_channels == self.out_channels == self.groups

    def pad(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Pad the map; return it with the symmetric zero padding left to the convolution."""
        if isinstance(self.padding, tuple):
            sides = [(p, p) for p in self.padding]
        else:
            sides = [self._string_padding(i, x.shape[2 + i]) for i in range(self.dims)]
        if self.padding_mode == "zeros" and all(before == after for before, after in sides):
            return x, tuple(before for before, _ in sides)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        if any(side != (0, 0) for side in sides):
            x = F.pad(x, [p for side in reversed(sides) for p in side], mode=mode)
        return x, (0,) * self.dims

    def _string_padding(self, axis: int, size: int) -> tuple[int, int]:
        if self.padding == "valid":
            return 0, 0
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        if self.padding == "tf_same":
            stride = self.stride[axis]
            reach = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        return reach // 2, reach - reach // 2

    def _apply(self: Slot, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Slot:
        """Apply fn to stacked kernels (E, O, ...) as (E * O, ...): channels_last needs 4 axes."""

        def on_kernel(x: Tensor) -> Tensor:
            if x.dim() != self.dims + 3:
                return fn(x)
            stacked: Tensor = fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return stacked

        super()._apply(on_kernel, recurse)  # type: ignore[no-untyped-call]
        return self

    def kernel_and_bias(
        self, x: Float[Tensor, "b c *s"]
    ) -> tuple[Float[Tensor, "b o c_per_group *k"], Float[Tensor, "b o"] | None]:
        """Kernel and bias of each sample; convolving with them computes the layer's output.

        Args:
            x: maps, or their means (B, C), on which alone the kernels depend.
        """
        raise NotImplementedError

    def attentions(self, x: Float[Tensor, "b c *s"]) -> dict[str, Float[Tensor, "b _n"]]:
        """Attentions of each sample, by axis; empty for a layer that generates its whole kernel.

        The axes are ``kernel`` (an entry per expert), ``filter`` (per output channel), ``channel``
        (per input channel) and ``spatial`` (per tap of the kernel).
        """
        return {}

    def attention_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the attentions: all of the layer but its experts and its bias.

        The generator of a DFN is not an attention: it generates the whole kernel.
        """
        if self.attention_module is not None:
            yield from self.get_submodule(self.attention_module).parameters()

    def fold_norm_(self, norm: _BatchNorm) -> bool:
        """Fold a batch norm in evaluation, applied to the output, into experts and bias.

        The experts (E, O, ...) are scaled per output channel; the bias is (O,) or (E, O).

        Returns:
            False, and the layer is unchanged, where that is not exact or not implemented.
        """
        if not self.folds_norms:
            return False
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight = self.get_parameter("weight")
        self.weight, self.bias = fuse_conv_bn_weights(weight, self.bias, *statistics, True)
        self.has_bias = True
        return True

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s_out"]:
        return self._convolve(x, *self.kernel_and_bias(x))

    def _convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        x, padding = self.pad(x)
        return conv_per_sample(x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    @torch.no_grad()
    def copy_static_(self, conv: nn.Module, spread: float = SPREAD) -> None:
        """Set the parameters so that the layer computes what a static convolution computes.

        Args:
            conv: a plain convolution of the same shape.
            spread: distance of the experts' filters from the static ones, relative to the root
                mean square of each filter's weights. Their mean is the static kernel and their
                attentions start equal, so the spread does not change the output. With equal
                experts (0) the attention has no gradient.
        """
        if not is_static(conv):
            raise ValueError(f"conv={type(conv).__name__} must be a plain convolution")
        shape = tuple(conv.weight.shape)
        if shape != self.kernel_shape or (conv.bias is not None) != self.has_bias:
            raise ValueError(
                f"conv has a kernel {shape} {'without' if conv.bias is None else 'with'} bias; the "
                f"layer's is {self.kernel_shape} {'with' if self.has_bias else 'without'} bias"
            )
        if spread < 0:
            raise ValueError(f"spread={spread} must not be negative")
        if self.bias is not None and conv.bias is not None:
            self.bias.copy_(conv.bias)
        self._start_from_(conv.weight, spread)

    def _start_from_(self, weight: Tensor, spread: float) -> None:
        """Make this the kernel of every sample; the bias has been copied."""
        raise NotImplementedError

    @property
    def attention_lr(self) -> float:
        """Factor of the attentions' learning rate that suits the layer."""
        return 1.0

    @classmethod
    def from_static(
        cls: type[Slot], conv: nn.Module, *, spread: float = SPREAD, **options: Any
    ) -> Slot:
        """Build the layer from a static convolution; it computes what the convolution does.

        The convolution is an ``nn.Conv1d/2d/3d`` of the layer's dimension, or timm's
        ``Conv2dSame``; ``spread`` is that of :meth:`copy_static_`.
        """
        layer = cls(**geometry(conv), **options)
        layer.copy_static_(conv, spread)
        return place_like(layer, conv)

    def why_not_static(self) -> str | None:
        """Why no static convolution computes the layer at a fixed kernel; None if one does."""
        if self.padding != "tf_same" or all(s == 1 for s in self.stride):
            return None
        if self.dims == 2 and self.padding_mode == "zeros" and timm_same_conv() is not None:
            return None
        return "padding='tf_same' with a stride needs timm's Conv2dSame, 2-D, with zeros"

    def to_static(self, kernel: Tensor, bias: Tensor | None = None) -> nn.Module:
        """Build the static convolution that has this kernel (O, C / groups, *k) and bias (O,).

        With ``kernel, bias = layer.kernel_and_bias(x)``, ``layer.to_static(kernel[0], bias[0])``
        computes for the sample x what the layer does. ``mix(attention, layer.weight)[0]`` is the
        kernel of an attention of your own.

        Raises:
            ValueError: the kernel or the bias has another shape, or :meth:`why_not_static`
                returns a reason.
        """
        if (why := self.why_not_static()) is not None:
            raise ValueError(why)
        shape = None if bias is None else tuple(bias.shape)
        if tuple(kernel.shape) != self.kernel_shape or shape not in (None, (self.out_channels,)):
            shapes = f"{self.kernel_shape} and ({self.out_channels},) or none"
            raise ValueError(f"kernel {tuple(kernel.shape)} and bias {shape} must be {shapes}")
        build, more = STATIC[self.dims], {"padding_mode": self.padding_mode}
        padding: Sizes | str = self.padding
        if padding == "tf_same":
            padding = "same"
            if any(s != 1 for s in self.stride):
                build, more, padding = timm_same_conv(), {}, 0
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, padding)
        conv: nn.Module = build(*sizes, self.dilation, self.groups, bias is not None, **more)
        state = {"weight": kernel} if bias is None else {"weight": kernel, "bias": bias}
        conv.to(kernel.dtype).load_state_dict(state)
        return place_like(conv, self)

    def extra_repr(self) -> str:
        ones, zeros = (1,) * self.dims, (0,) * self.dims
        usual = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1, "has_bias": True}
        values = {name: getattr(self, name) for name in usual}
        options = [f"{name}={value}" for name, value in values.items() if value != usual[name]]
        options += [f"padding_mode={self.padding_mode}"] * (self.padding_mode != "zeros")
        head = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return ", ".join([head, *options]).replace("has_bias", "bias")
