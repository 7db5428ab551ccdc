"""RTMDet-Ins trained, evaluated and drawn by the commands, as any other model."""

import json
from pathlib import Path

import pytest
import torch
from support import foreign
from support.rtmdet_tensors import checkpoint
from support.tiny import arguments, losses, make_set

from condseg.cli import eval, predict, train
from condseg.models import RTMDetHead
from condseg.zoo.checkpoint import restore

# A tiny set is loaded without workers; pycocotools' own decode under NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_train_eval_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(tmp_path / "data")  # a third of its images have no objects
    cli = train.main(
        arguments(
            data,
            tmp_path / "runs",
            "--progress.refresh_rate=0",
            "--model.network.head=condseg.models.RTMDetHead",
            "--model.network.pyramid=condseg.models.FPN",
            "--model.network.pyramid.init_args.num_levels=3",
            "--model.dense_loss=condseg.models.SoftLabelLoss",
            "--model.dense_loss.init_args.topk=9",
            "--model.postprocess.score_threshold=0.001",  # after six steps, scores are about 0.01
        )
    )
    assert cli.model.criterion.dense_loss.topk == 9
    logged = ("loss", "loss_cls", "loss_box", "loss_mask", "lr", "gradient_norm")
    names = {f"train/{name}" for name in logged}
    assert set(losses(tmp_path / "runs")[5]) == names

    checkpoint = str(cli.run_folder / "checkpoints" / "last.ckpt")
    network = restore(checkpoint).network
    assert isinstance(network.head, RTMDetHead)

    monkeypatch.chdir(tmp_path)
    common = ["--checkpoint", checkpoint, "--device", "cpu"]
    eval.main([*common, "--workers", "0", "--output", "eval"])
    assert "mask/AP" in json.loads(Path("eval/summary.json").read_text())["metrics"]
    assert predict.main([str(data / "val"), *common, "--score", "0.001", "--json"]) == 0
    content = json.loads(Path("out/detections.json").read_text())
    assert len(content["images"]) == 5
    assert content["annotations"]


def test_fine_tuning_from_mmdetections_weights(tmp_path: Path) -> None:
    """Of a data set alone: the network, its padding and post-process are those of the start."""
    data, state = make_set(tmp_path / "data"), checkpoint("tiny")
    source = foreign.save({"state_dict": state}, tmp_path / "x.pth")
    (tmp_path / "small.yaml").write_text("trainer: {precision: 32-true}\n")
    args = arguments(data, tmp_path / "runs", f"--init_from={source}")
    args[0] = f"--config={tmp_path / 'small.yaml'}"
    train.main([*args, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    restored = restore(tmp_path / "runs/small/version_0/checkpoints/last.ckpt")
    assert [category.name for category in restored.categories] == ["box", "disc"]
    assert restored.network.backbone.letterbox
    assert restored.postprocess.mask_interpolation == "logits"
    assert restored.postprocess.clip_before_nms
    trained = restored.network.state_dict()
    assert trained["head.class_logits.0.weight"].shape[0] == 2
    # Two steps at the start of the warm-up change the loaded weights very little.
    kernel = trained["head.kernel_tower.convs.2.1.weight"]
    original = state["bbox_head.kernel_convs.2.1.conv.weight"]
    torch.testing.assert_close(kernel, original, atol=1e-3, rtol=0)
