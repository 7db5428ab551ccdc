"""What a run leaves behind, and options that affect the training step."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from condseg.cli.train import CommandLine, main
from condseg.zoo.checkpoint import load, restore

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SHORT = (
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=0",
    "--progress.refresh_rate=0",
)


def losses(data: Path, runs: Path, *args: str) -> list[float]:
    """The losses of a run by step."""
    CommandLine(tiny.arguments(data, runs, *args)).fit()
    return [step["train/loss"] for step in tiny.losses(runs).values()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    cli = CommandLine(
        tiny.arguments(
            data,
            tmp_path_factory.mktemp("runs"),
            "--model.network.backbone.conv=condseg.layers.ODConv2d",
            "--model.network.backbone.conv.init_args.num_experts=2",
            "--model.network.mask_filter=condseg.layers.DynamicDilatedPyramid2d",
            "--model.network.semantic_loss=true",
            "--model.backbone_lr=0.5",
            "--progress.refresh_rate=0",
        )
    )
    cli.fit()
    return cli


def last(trained: CommandLine) -> Path:
    return trained.run_folder / "checkpoints" / "last.ckpt"


def test_files_of_a_run(trained: CommandLine) -> None:
    folder = trained.run_folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml"} <= names
    assert {f"images/step_000006/{k:03}.jpg" for k in range(4)} <= names
    assert cv2.imread(str(folder / "images/step_000006/000.jpg")) is not None
    assert any("tfevents" in name for name in names)
    metrics = tiny.losses(folder.parents[1])
    parts = ["cls", "box", "centerness", "mask", "semantic"]
    assert list(metrics) == list(range(6))
    for step in metrics.values():
        assert step["train/loss"] == pytest.approx(sum(step[f"train/loss_{p}"] for p in parts))


def test_what_loggers_get(trained: CommandLine) -> None:
    """TensorBoard's tags, and W&B's, which has the same metrics."""
    events = EventAccumulator(str(trained.run_folder), {"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    losses = {f"{part}/loss{name}" for part in ("train", "val") for name in ("", "_cls", "_mask")}
    by_class = {f"val_{kind}_AP/{name}" for kind in ("box", "mask") for name in ("box", "disc")}
    assert {"train/lr", "train/gradient_norm", "val/mask_AP", *losses, *by_class} <= scalars
    assert "val/loss_semantic" not in scalars
    mean = sum(e.value for t in by_class if "mask" in t for e in events.Scalars(t)) / 2
    assert [e.value for e in events.Scalars("val/mask_AP")] == pytest.approx([mean], abs=1e-6)
    assert events.Tags()["images"] == [f"validation/{k:03}" for k in range(4)]
    (image,) = events.Images("validation/002")
    assert (image.step, image.width, image.height) == (6, 256, 256)  # enlarged for labels


def test_losses_of_the_validation(trained: CommandLine) -> None:
    """The mean over five images in batches of the validation's size, without random numbers."""
    module, data = trained.model.eval(), trained.datamodule
    means = dict.fromkeys(("loss_cls", "loss_box", "loss_mask"), 0.0)
    with torch.inference_mode():
        for batch in data.val_dataloader():
            dense = module.network(batch.images, batch.sizes)
            losses = module.criterion(dense, batch, module.network.mask_logits)
            for name in means:
                means[name] += float(losses[name]) * len(batch) / 5
    logged = {name: float(trained.trainer.callback_metrics[f"val/{name}"]) for name in means}
    assert logged == pytest.approx(means, rel=1e-4)


def test_validating_does_not_change_the_training(data: Path, tmp_path: Path) -> None:
    """Locations of the mask loss are chosen at random, in validation too."""
    few = ("--model.mask_loss.max_proposals=3", *SHORT)
    alone = losses(data, tmp_path / "alone", *few)
    often = ("--trainer.limit_val_batches=1", "--trainer.val_check_interval=1")
    assert losses(data, tmp_path / "often", *few, *often) == alone


def test_gradient_norm(trained: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    module, logged = trained.model, {}
    monkeypatch.setattr(module, "log", logged.__setitem__)
    for parameter in module.parameters():
        parameter.grad = None
    weights = [p for p in module.parameters() if p.requires_grad][:2]
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    module.on_before_optimizer_step(trained.trainer.optimizers[0])
    count = sum(weight.numel() for weight in weights)
    assert float(logged["train/gradient_norm"]) == pytest.approx(2 * count**0.5)


def test_restored_network_equals_the_trained(trained: CommandLine) -> None:
    restored = restore(last(trained))
    assert [(c.id, c.name) for c in restored.categories] == [(3, "box"), (7, "disc")]
    assert (restored.short_side, restored.max_long_side) == (64, 64)
    assert restored.data["batch_size"] == 4
    assert not restored.network.training
    state = trained.model.network.state_dict()
    torch.testing.assert_close(dict(restored.network.state_dict()), dict(state), rtol=0, atol=0)
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        one = restored.network(images, [(64, 64)]).head.class_logits
        other = trained.model.network.eval()(images, [(64, 64)]).head.class_logits
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_recipe_is_plain_data(trained: CommandLine) -> None:
    recipe = load(last(trained))["condseg"]
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["model"]["network"]["num_classes"] == 2


def test_final_temperature_is_in_the_checkpoint(trained: CommandLine) -> None:
    """Six steps, annealed over four."""
    state = load(last(trained))["state_dict"]
    assert {float(v) for name, v in state.items() if name.endswith("temperature")} == {1.0}


def test_learning_rates_by_group(trained: CommandLine) -> None:
    groups = trained.trainer.optimizers[0].param_groups
    rates = {group["name"]: group["initial_lr"] for group in groups}
    # Half of the network's rate by the option, 1 / (2 n) of it by the layer.
    assert rates["backbone attention"] == pytest.approx(0.005 * 0.5 / 16)
    assert rates["other"] == 0.01


@pytest.mark.tool
def test_eval_and_demo_as_a_user(trained: CommandLine, data: Path, tmp_path: Path) -> None:
    def tool(name: str, *args: str) -> str:
        process = subprocess.run(
            [sys.executable, str(tiny.REPOSITORY / "tools" / name), *args],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=tiny.environment(),
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    checkpoint = ("--checkpoint", str(last(trained)))
    assert "mask" in tool("eval.py", *checkpoint)
    tool("demo.py", str(data / "val"), *checkpoint)
    assert len(list((tmp_path / "out").glob("*"))) >= 5


def test_wrong_checkpoints(trained: CommandLine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.ckpt: no such file"):
        restore(tmp_path / "missing.ckpt")
    whole = last(trained).read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.ckpt (is damaged|cannot be read)"):
            restore(path)
    for entry, message in (("model", "not written by condseg"), ("state_dict", "condseg train")):
        torch.save({entry: {}}, tmp_path / "other.ckpt")
        with pytest.raises(ValueError, match=rf"other\.ckpt: .*{message}"):
            restore(tmp_path / "other.ckpt")


def test_a_checkpoint_runs_no_code(trained: CommandLine, tmp_path: Path) -> None:
    content = copy.deepcopy(load(last(trained)))
    conv = content["condseg"]["model"]["network"]["backbone"]["conv"]
    conv |= {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "evil"]}}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: .*subprocess\.Popen.* is not allowed"):
        restore(tmp_path / "evil.ckpt")


def test_the_loss_falls(tmp_path: Path) -> None:
    """On the same two images again and again."""
    data = tiny.make_set(tmp_path / "data", train=3, val=1)
    args = (*SHORT, "--trainer.max_steps=30", "--data.batch_size=2")
    values = losses(data, tmp_path, *args)
    assert values[-1] < 0.8 * values[0]


def test_the_ground_truth_is_read_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ground_truth(*args: object, **options: object) -> None:
        raise ValueError("no ground truth")

    monkeypatch.setattr("condseg.training.module.CocoEvaluator", no_ground_truth)
    with pytest.raises(ValueError, match="no ground truth"):
        losses(data, tmp_path, *SHORT)


def test_a_broken_image_in_a_worker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.make_set(tmp_path / "data")
    (root / "train" / "001.png").write_bytes(b"\xff\xd8\xff")
    message = tiny.error(main, tiny.arguments(root, tmp_path / "runs", "--data.workers=1"), capsys)
    assert f"{root}/train/001.png (image 101 of {root}/instances_train.json): cannot" in message


def test_broken_images_are_skipped(tmp_path: Path) -> None:
    """In training and in validation, where the first image is drawn and counts as missed."""
    root = tiny.make_set(tmp_path / "data")
    for image in ("train/001.png", "val/000.png"):
        (root / image).write_bytes(b"\xff\xd8\xff")
    args = ("--data.on_broken_image=skip", "--progress.refresh_rate=0")
    cli = CommandLine(tiny.arguments(root, tmp_path / "runs", *args))
    cli.fit()
    drawn = cv2.imread(str(cli.run_folder / "images" / "step_000006" / "000.jpg"))
    assert drawn is not None
    assert np.median(drawn) == 0
    assert (cli.run_folder / "checkpoints" / "best.ckpt").is_file()


def test_mixed_precision(tmp_path: Path) -> None:
    """With more than one pixel before P7: torch 2.11's bfloat16 gradient of a strided convolution
    of one pixel reads uninitialised memory on the CPU."""
    data = tiny.make_set(tmp_path / "data", side=96)
    sides = ("--data.short_sides=[96]", "--data.val_short_side=96", "--data.max_long_side=96")
    args = (*SHORT, *sides, "--model.network.backbone.conv=condseg.layers.ODConv2d")
    float32, mixed = (
        losses(data, tmp_path / precision, *args, f"--trainer.precision={precision}")
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed == pytest.approx(float32, rel=0.03)


def test_fused_optimizers_are_clipped_like_others(data: Path, tmp_path: Path) -> None:
    args = (
        *SHORT,
        "--trainer.precision=bf16-mixed",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.init_args.lr=0.1",
        "--model.optimizer.init_args.momentum=0",
    )
    fused, foreach, unclipped = (
        losses(
            data,
            tmp_path / f"{form}_{clip}",
            *args,
            f"--model.optimizer.init_args.{form}=true",
            f"--trainer.gradient_clip_val={clip}",
        )
        for form, clip in (("fused", 0.01), ("foreach", 0.01), ("foreach", "null"))
    )
    assert fused == pytest.approx(foreach, rel=1e-3)
    assert fused[-1] != pytest.approx(unclipped[-1], rel=1e-2)


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, tmp_path: Path) -> None:
    args = ("--model.optimizer.init_args.lr=1e30", "--trainer.gradient_clip_val=null")
    with pytest.raises(
        ValueError,
        match=r"loss.* at step \d is not a finite number; images .*: 10\d \(.*png\); a lower",
    ):
        losses(data, tmp_path, *args)
