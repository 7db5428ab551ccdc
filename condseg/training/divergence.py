"""Which loss or gradient of a training was the first that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from condseg.errors import few
from condseg.structures import ImageInfo

CHECK_EVERY = 100
"""Steps after which the losses are checked, if the logging does not ask for it earlier."""


@dataclass(frozen=True, slots=True)
class _Values:
    """Numbers of a step: its losses, or the norm of each gradient."""

    step: int
    kind: str
    names: Sequence[str]
    values: Tensor

    def __str__(self) -> str:
        finite = self.values.isfinite().tolist()
        wrong = [name for name, is_finite in zip(self.names, finite, strict=True) if not is_finite]
        if self.kind == "gradient":  # computed from the last layer to the first
            return f"the gradient of {few(wrong[::-1], 1)} at step {self.step}"
        return f"{', '.join(wrong)} at step {self.step}"


class Divergence:
    """Keeps losses and gradients of the latest steps on their device until they are checked.

    Checking each step would wait for the device each time. After a check that passes, the steps
    before are forgotten.
    """

    def __init__(self) -> None:
        self._recent: list[_Values] = []
        self._images: dict[int, list[ImageInfo]] = {}

    def add_losses(
        self, step: int, names: Sequence[str], losses: Tensor, images: Iterable[ImageInfo]
    ) -> None:
        """Adds the losses of a batch; with accumulated gradients, a step has several."""
        self._recent.append(_Values(step, "loss", names, losses))
        self._images.setdefault(step, []).extend(images)

    def add_gradients(self, step: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        """Adds the gradients of a step, before they are clipped; the norm of all of them."""
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if not gradients:
            return None
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        self._recent.append(_Values(step, "gradient", list(gradients), norms))
        total: Tensor = torch.linalg.vector_norm(norms)
        return total

    def check(self) -> None:
        """Looks at the latest values; the one wait for the device.

        Raises:
            ValueError: one is not finite; says which was the first, and which images its batch had.
        """
        if first := self._first():
            raise ValueError(
                f"{first} is not a finite number; {self._images_of(first.step)}; a lower "
                "--model.optimizer.init_args.lr, a longer warm-up or --trainer.precision 32-true "
                "helps"
            )
        latest = max(self._images, default=0)
        self._images = {step: self._images[step] for step in self._images if step == latest}
        self._recent = []

    def check_checkpoint(self, checkpoint: Mapping[str, Any], strategy: Strategy) -> None:
        """Like :meth:`check`, and looks at the weights and the optimizer's state on all ranks.

        Raises:
            ValueError: one is not finite.
        """
        self.check()
        tensors = {name: t for name, t in _tensors(checkpoint) if t.is_floating_point()}
        finite = torch.stack([t.isfinite().all() for t in tensors.values()]).tolist()
        wrong = [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]
        if strategy.reduce_boolean_decision(bool(wrong), all=False):
            step = int(checkpoint["global_step"])
            raise ValueError(
                f"{few(wrong, 1) or 'a weight'} is not a finite number after {step} steps and is "
                f"not saved; {self._images_of(step - 1)}"
            )

    def _first(self) -> _Values | None:
        """The first after the last finite loss: a step that recovers is no divergence."""
        first = None
        for values in reversed(self._recent):
            if not bool(values.values.isfinite().all()):
                first = values
            elif values.kind == "loss":
                break
        return first

    def _images_of(self, step: int) -> str:
        images = self._images.get(step, [])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [images] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, images)
            images = [info for part in parts for info in part]
        return "images of the step: " + ", ".join(f"{i.image_id} ({i.file_name})" for i in images)


def _tensors(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key in ("state_dict", "current_model_state"):
        for name, tensor in checkpoint.get(key, {}).items():
            yield name, tensor
    for optimizer in checkpoint.get("optimizer_states", []):
        for index, state in optimizer["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {name} of parameter {index}", value
