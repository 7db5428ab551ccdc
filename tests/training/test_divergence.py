"""A training whose numbers become infinite or NaN says where, and keeps its checkpoints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from support import tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from condseg.cli.train import CommandLine
from condseg.structures import ImageInfo
from condseg.training.divergence import Divergence
from condseg.zoo.checkpoint import load

NAN = float("nan")
NAMES = ["loss", "loss_cls"]


class Count(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


def info(number: int) -> ImageInfo:
    return ImageInfo(number, f"{number}.jpg", (8, 8), (8, 8))


def parameters(*gradients: float) -> dict[str, nn.Parameter]:
    found = {f"layer{k}": nn.Parameter(torch.zeros(2)) for k in range(len(gradients))}
    for parameter, gradient in zip(found.values(), gradients, strict=True):
        parameter.grad = torch.tensor([0.0, gradient])
    return found


def step(steps: Divergence, number: int, losses: list[float], *gradients: float) -> None:
    steps.add_losses(number, NAMES, torch.tensor(losses), [info(2 * number), info(2 * number + 1)])
    steps.add_gradients(number, parameters(*gradients))


def test_a_loss_is_first() -> None:
    steps = Divergence()
    step(steps, 4, [1.0, 1.0], 1.0, 1.0)
    step(steps, 5, [NAN, float("inf")], NAN, NAN)
    step(steps, 6, [NAN, NAN], NAN, NAN)
    expected = r"^loss, loss_cls at step 5 is not a finite .*: 10 \(10\.jpg\), 11 \(11\.jpg\); a lo"
    with pytest.raises(ValueError, match=expected):
        steps.check()


def test_a_gradient_is_first() -> None:
    """The last of the layers is the first in the backward pass."""
    steps = Divergence()
    step(steps, 4, [1.0, 1.0], NAN, 1.0, float("inf"), 1.0)
    step(steps, 5, [NAN, NAN], NAN, NAN, NAN, NAN)
    with pytest.raises(
        ValueError, match=r"^the gradient of layer2 and 1 more at step 4 is .*: 8 \("
    ):
        steps.check()


def test_a_gradient_of_the_step_that_was_checked() -> None:
    steps = Divergence()
    steps.add_losses(3, NAMES, torch.ones(2), [info(6)])
    steps.check()
    steps.add_gradients(3, parameters(NAN))
    with pytest.raises(ValueError, match=r"^the gradient of layer0 at step 3 .*: 6 \("):
        steps.check()


def test_a_step_that_recovers_is_no_divergence() -> None:
    steps = Divergence()
    step(steps, 4, [NAN, NAN], NAN)
    step(steps, 5, [1.0, 1.0], 1.0)
    steps.check()


def test_waits_for_the_device_once_per_check() -> None:
    steps = Divergence()
    with Count() as count:
        for number in range(20):
            steps.add_losses(number, NAMES, torch.zeros(2), [info(number)])
            steps.add_gradients(number, {"layer": WEIGHT})
    assert count.operators == {
        "zeros": 20,
        "_foreach_norm": 20,
        "stack": 20,
        "linalg_vector_norm": 20,
    }
    steps.add_losses(20, NAMES, torch.zeros(2), [info(20)])
    with Count() as count:
        steps.check()
    assert count.operators["_local_scalar_dense"] == 1


WEIGHT = nn.Parameter(torch.zeros(2))
WEIGHT.grad = torch.zeros(2)


class Spoil(Callback):
    """Makes a gradient, or a weight or a state of the optimizer afterwards, NaN in step 3."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        if trainer.global_step == 3 and self.what == "gradient":
            spoil(module.network.head.controller.weight.grad)

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 4 and self.what == "weight":
            spoil(module.network.head.controller.weight)
        if trainer.global_step == 4 and self.what == "state":
            weight = module.network.head.controller.weight
            spoil(trainer.optimizers[0].state[weight]["momentum_buffer"])


@torch.no_grad()
def spoil(tensor: Tensor) -> None:
    tensor.view(-1)[0] = NAN


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gradient", r"^the gradient of network\.head\.controller\.weight at step 3 is not"),
        ("weight", r"^network\.head\.controller\.weight is not .* after 4 steps and is not saved"),
        ("state", r"^the optimizer's momentum_buffer of parameter \d+ is not a finite"),
    ],
)
def test_the_checkpoints_from_before_are_kept(tmp_path: Path, what: str, message: str) -> None:
    data = tiny.make_set(tmp_path / "data")
    args = ("--trainer.val_check_interval=2", "--trainer.log_every_n_steps=100")
    args += ("--progress.refresh_rate=0", "--last_checkpoint.every_n_steps=1")
    cli = CommandLine(tiny.arguments(data, tmp_path, *args, "--trainer.limit_val_batches=1"))
    cli.trainer.callbacks.insert(0, Spoil(what))  # type: ignore[attr-defined]
    images = r".*; images of the step: (10\d \(\S+\.png\)(, )?){4}"
    with pytest.raises(ValueError, match=message + images):
        cli.fit()
    folder = cli.run_folder / "checkpoints"
    steps = {path.name: load(path)["global_step"] for path in folder.iterdir()}
    assert steps == {"best.ckpt": 2, "last.ckpt": 3, "last_1.ckpt": 2}
