"""Training from the first step to the pictures, and its parts one by one."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from support import tiny
from torch import nn

from condseg.cli.train import CommandLine
from condseg.layers import ODConv2d, set_temperature
from condseg.training.callbacks import (
    ExponentialAveraging,
    TemperatureAnnealing,
    ValidationImages,
)
from condseg.training.module import parameter_groups
from condseg.training.schedules import WarmupCosine, WarmupMultiStep
from condseg.training.sync_batchnorm import GlobalBatchNorm, SyncBatchNorm
from condseg.zoo.checkpoint import load, restore

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CommandLine]:
    """The data's folder and a finished training."""
    folder = tmp_path_factory.mktemp("trained")
    data = tiny.make_set(folder / "data")
    cli = CommandLine(
        tiny.arguments(
            data,
            folder / "runs",
            "--model.network.backbone.conv=condseg.layers.ODConv2d",
            "--model.network.backbone.conv.init_args.num_experts=2",
            "--model.network.mask_filter=condseg.layers.DynamicDilatedPyramid2d",
            "--model.network.semantic_loss=true",
            "--model.backbone_lr=0.5",
            "--progress.refresh_rate=0",
        ),
    )
    cli.fit()
    return data, cli


def test_what_a_run_leaves(trained: tuple[Path, CommandLine]) -> None:
    folder = trained[1].run_folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml"} <= names
    assert {f"images/step_000006/{k}.jpg" for k in range(4)} <= names
    assert any("tfevents" in name for name in names)
    losses = tiny.losses(folder.parents[1])
    parts = ["cls", "box", "centerness", "mask", "semantic"]
    assert list(losses) == list(range(6))
    for step in losses.values():
        assert step["train/loss"] == pytest.approx(sum(step[f"train/loss_{p}"] for p in parts))


def test_restored_is_the_trained(trained: tuple[Path, CommandLine]) -> None:
    _, cli = trained
    restored = restore(cli.run_folder / "checkpoints" / "last.ckpt")
    assert [(c.id, c.name) for c in restored.categories] == [(3, "box"), (7, "disc")]
    assert (restored.short_side, restored.max_long_side) == (64, 64)
    assert restored.data["batch_size"] == 4
    assert not restored.network.training
    state = cli.model.network.state_dict()
    for name, value in restored.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, msg=name)
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        one = restored.network(images, [(64, 64)]).class_logits
        other = cli.model.network.eval()(images, [(64, 64)]).class_logits
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_eval_and_demo_as_a_user(trained: tuple[Path, CommandLine], tmp_path: Path) -> None:
    data, cli = trained
    checkpoint = cli.run_folder / "checkpoints" / "last.ckpt"

    def tool(name: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(tiny.REPOSITORY / "tools" / name), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=tiny.environment(),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mask" in tool("eval.py", "--checkpoint", str(checkpoint))
    tool("demo.py", str(data / "val"), "--checkpoint", str(checkpoint))
    assert len(list((tmp_path / "out").glob("*"))) >= 5


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_no_checkpoint(trained: tuple[Path, CommandLine], tmp_path: Path) -> None:
    whole = (trained[1].run_folder / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"nowhere\.ckpt: there is no such file"):
        restore(tmp_path / "nowhere.ckpt")
    for name, content in (("half", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        with pytest.raises(ValueError, match=rf"{name}\.ckpt: damaged, or no checkpoint"):
            restore(damaged(tmp_path / f"{name}.ckpt", content))
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt: not written by condseg"):
        restore(tmp_path / "foreign.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt: not written by tools/train.py"):
        restore(tmp_path / "other.ckpt")


def test_a_checkpoint_runs_no_code(trained: tuple[Path, CommandLine], tmp_path: Path) -> None:
    content = load(trained[1].run_folder / "checkpoints" / "last.ckpt")
    evil = copy.deepcopy(content)
    conv = evil["condseg"]["model"]["network"]["backbone"]["conv"]
    conv |= {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "evil"]}}
    torch.save(evil, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: does not fit .*subprocess.Popen"):
        restore(tmp_path / "evil.ckpt")


def test_groups_of_parameters(trained: tuple[Path, CommandLine]) -> None:
    _, cli = trained
    groups = {group["name"]: group for group in parameter_groups(cli.model.network)}
    assert set(groups) == {
        "other",
        "norm",
        "backbone",
        "backbone norm",
        "backbone attention",
        "backbone attention norm",
    }
    for name, group in groups.items():
        assert ("weight_decay" in group) == name.endswith("norm")
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in cli.model.network.parameters() if p.requires_grad}
    optimizer = cli.model.trainer.optimizers[0]
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates["backbone attention"] == 0.005
    assert rates["other"] == 0.01


def rates(schedule: type[Any], steps: int, total: int, **knobs: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, total, **knobs)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warmup_and_steps() -> None:
    found = rates(
        WarmupMultiStep, 9, 9, milestones=(5, 7), warmup_steps=4, warmup_factor=0.2, gamma=0.1
    )
    assert found == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 0.2, 0.2, 0.02, 0.02])


def test_warmup_and_cosine() -> None:
    found = rates(WarmupCosine, 7, 6, warmup_steps=2, warmup_factor=0.0, final_factor=0.1)
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert found == pytest.approx([0.0, 1.0, *[2 * c for c in cosine]])


def test_flat_before_the_cosine() -> None:
    found = rates(WarmupCosine, 9, 8, warmup_steps=2, warmup_factor=0.0, flat=0.5)
    cosine = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0, *[2 * c for c in cosine]])


@pytest.mark.parametrize(
    ("schedule", "knobs", "message"),
    [
        (WarmupMultiStep, {"milestones": (3, 2)}, r"milestones are \[3, 2\]; they must ascend"),
        (WarmupMultiStep, {"warmup_factor": 2.0}, "warmup_factor is 2.0; 0 to 1 is allowed"),
        (WarmupCosine, {"warmup_steps": -1}, "warmup_steps is -1; 0 or more is allowed"),
        (WarmupCosine, {"final_factor": -0.1}, "final_factor is -0.1; 0 to 1 is allowed"),
        (WarmupCosine, {"flat": 1.5}, "flat is 1.5; 0 to 1 is allowed"),
    ],
)
def test_wrong_schedules(schedule: type[Any], knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(schedule, 1, 10, **knobs)


def test_temperature_falls_to_one(trained: tuple[Path, CommandLine]) -> None:
    annealing = TemperatureAnnealing(start=30.0, steps=10)
    assert [annealing.temperature(step) for step in (0, 5, 10, 99)] == [30, 15.5, 1, 1]
    assert TemperatureAnnealing(steps=0).temperature(0) == 1
    # Six steps, annealed over four: it is in the checkpoint.
    state = load(trained[1].run_folder / "checkpoints" / "last.ckpt")["state_dict"]
    values = [float(v) for name, v in state.items() if name.endswith("temperature")]
    assert values
    assert set(values) == {1.0}


@pytest.mark.parametrize("every", [1, 3])
def test_moving_average(every: int) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ODConv2d(2, 2, 3, padding=1, num_experts=2)

    module = Module()
    averaging = ExponentialAveraging(decay=0.5, every_n_steps=every)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False)
    averaging.setup(trainer, module, "fit")
    expected = module.conv.weight.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            module.conv.weight.add_(1.0)
        set_temperature(module, 10.0 - step)
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step  # noqa: E501
        averaging.on_train_batch_end(trainer, module, None, None, step)
        t = step - 1  # the first update copies
        if t % every:
            continue
        decay = min(0.5, (1 + t) / (10 + t)) ** every if t else 0.0
        expected = decay * expected + (1 - decay) * module.conv.weight.detach()
        assert averaging._average_model is not None
        average = averaging._average_model.module.conv
        torch.testing.assert_close(average.weight, expected)
        assert float(average.temperature) == 10.0 - step


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_wrong_decay(value: float) -> None:
    with pytest.raises(ValueError, match="decay is"):
        ExponentialAveraging(value)


def test_wrong_number_of_steps() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        ExponentialAveraging(every_n_steps=0)


def test_wrong_count_of_pictures() -> None:
    with pytest.raises(ValueError, match="count is -1; 0 or more is allowed"):
        ValidationImages(-1)


@pytest.fixture
def alone() -> Any:
    """A process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.usefixtures("alone")
def test_global_batch_norm_is_batch_norm(momentum: float | None) -> None:
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    nn.init.normal_(plain.weight)
    synchronised = GlobalBatchNorm(copy.deepcopy(plain))
    for training in (True, True, False):
        plain.train(training)
        synchronised.train(training)
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        a, b = plain(x), synchronised(y)
        torch.testing.assert_close(b, a)
        gradient = torch.randn_like(a)
        a.backward(gradient)
        b.backward(gradient)
        torch.testing.assert_close(y.grad, x.grad)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(synchronised.state_dict()[name], value)


@pytest.mark.usefixtures("alone")
def test_a_single_value_is_normalised_by_the_running_statistics() -> None:
    norm = GlobalBatchNorm(nn.BatchNorm1d(2))
    assert norm(torch.tensor([[3.0, 4.0]])).tolist() == [pytest.approx([3.0, 4.0], rel=1e-4)]
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.num_batches_tracked == 0


def test_synchronising_and_back() -> None:
    """timm's norms carry their activation."""
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(layers.BatchNormAct2d(4))
    )
    x = torch.randn(2, 3, 4, 4)
    before, names = model.eval()(x), list(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    plugin = SyncBatchNorm()
    plugin.apply(model)
    assert sum(isinstance(module, GlobalBatchNorm) for module in model.modules()) == 2
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), before)
    plugin.revert(model)
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model(x), before)


def test_two_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    """Not a benchmark: the losses fall when the same pictures come again."""
    data = tiny.make_set(tmp_path / "data", train=3, val=1)
    words = ("--trainer.max_steps=30", "--data.batch_size=2", "--progress.refresh_rate=0")
    CommandLine(tiny.arguments(data, tmp_path, *words)).fit()
    losses = [step["train/loss"] for step in tiny.losses(tmp_path).values()]
    assert losses[-1] < 0.8 * losses[0]
    picture = next((tmp_path / "tiny/version_0/images").rglob("*.jpg"))
    assert cv2.imread(str(picture)) is not None


def test_mixed_precision(tmp_path: Path) -> None:
    """Maps of 1x1 before P7 are avoided: torch 2.11's bfloat16 gradient of a strided convolution
    of one pixel reads memory that nobody wrote, on the CPU."""
    data = tiny.make_set(tmp_path / "data", side=96)
    sides = ("--data.short_sides=[96]", "--data.val_short_side=96", "--data.max_long_side=96")
    words = (*sides, "--model.network.backbone.conv=condseg.layers.ODConv2d")
    found = []
    for precision in ("32-true", "bf16-mixed"):
        more = (f"--trainer.precision={precision}", "--progress.refresh_rate=0")
        runs = tmp_path / precision
        CommandLine(tiny.arguments(data, runs, *words, *more)).fit()
        found.append([step["train/loss"] for step in tiny.losses(runs).values()])
    assert found[1][:3] == pytest.approx(found[0][:3], rel=0.03)


def test_fused_optimizers_are_clipped_like_others(tmp_path: Path) -> None:
    data = tiny.make_set(tmp_path / "data")
    found = []
    for form, clip in (("fused", 0.01), ("foreach", 0.01), ("foreach", "null")):
        words = ("--trainer.precision=bf16-mixed", "--progress.refresh_rate=0")
        clipped = (f"--trainer.gradient_clip_val={clip}", "--model.optimizer=torch.optim.SGD")
        optimizer = ("--model.optimizer.init_args.lr=0.1", "--model.optimizer.init_args.momentum=0")
        runs = tmp_path / f"{form}_{clip}"
        form = f"--model.optimizer.init_args.{form}=true"
        CommandLine(tiny.arguments(data, runs, *words, *clipped, *optimizer, form)).fit()
        found.append([step["train/loss"] for step in tiny.losses(runs).values()])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][-1] != pytest.approx(found[2][-1], rel=1e-2)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    data = tiny.make_set(tmp_path / "data")
    words = tiny.arguments(data, tmp_path, "--model.optimizer.init_args.lr=1e30")
    words.append("--trainer.gradient_clip_val=null")
    with pytest.raises(ValueError, match=r"at step \d+ is not a finite number; a lower"):
        CommandLine(words).fit()


def test_summary_is_plain(trained: tuple[Path, CommandLine]) -> None:
    """A checkpoint's description of its model goes through JSON."""
    recipe = load(trained[1].run_folder / "checkpoints" / "last.ckpt")["condseg"]
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["model"]["network"]["num_classes"] == 2
