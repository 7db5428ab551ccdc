"""tools/eval.py, condseg.cli.eval: its figures against pycocotools used directly."""

import json
import subprocess
import sys

import pytest
from support import tiny
from support.coco import CocoSet, pycocotools, square

from condseg.cli.eval import main


@pytest.fixture
def paths(tmp_path):
    """A checkpoint and a set whose images differ in size."""
    sizes = [(60 + 10 * i, 100 - 10 * i) for i in range(5)]
    coco = CocoSet(tmp_path / "set", "val", sizes, objects=0)
    for n, image in enumerate(coco.content["images"]):
        coco.add(image["id"], [square(10, 10, 35)], [10, 10, 35, 35], n)
    coco.content["categories"].append({"id": 40, "name": "spoon"})
    coco.write()
    return tiny.write_checkpoint(tmp_path / "best.ckpt"), coco


def test_table_and_json_equal_pycocotools_directly(paths, tmp_path, capsys):
    checkpoint, coco = paths
    common = ["--checkpoint", checkpoint, "--data", coco.root, "--workers", 0, "--device", "cpu"]
    main([*map(str, common), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"checkpoint {checkpoint}: 3 classes, trained on tabletop, 70 steps\n"
    )
    assert "5 objects" in printed
    assert "-1 for spoon: no objects of this class in this set" in printed
    assert "images/s" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images_per_second"] > 0
    assert summary["model"] == f"checkpoint {checkpoint}"
    assert (summary["trained_on"], summary["steps"]) == ("tabletop", 70)
    stages = {"load", "pre-process", "backbone", "FPN", "heads", "decode + NMS", "mask head"}
    stages |= {"post-process", "RLE"}
    assert set(summary["seconds_by_stage"]) == stages
    assert all(f"\n{stage} " in printed for stage in stages)
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100"]
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        results = str(tmp_path / "out" / f"results_{kind}.json")
        ours = [summary["metrics"][f"{kind}/{name}"] for name in [*names, "ARs", "ARm", "ARl"]]
        assert ours == pycocotools(coco.json, results, iou_type).stats.tolist()


def test_a_folder_that_cannot_be_written_is_reported_first(paths, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("condseg.inference.evaluate.CocoEvaluator", lambda *_: pytest.fail("late"))
    (tmp_path / "file").touch()
    args = ["--checkpoint", str(paths[0]), "--data", str(paths[1].root)]
    for output in ("file", "file/below"):
        message = tiny.error(main, [*args, "--output", str(tmp_path / output)], capsys)
        assert f"output {tmp_path / output}: no file can be written there" in message


def test_the_table_is_shown_even_if_the_files_cannot_be_written(
    paths, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("condseg.inference.evaluate.write_results", full)
    args = ["--checkpoint", paths[0], "--data", paths[1].root, "--workers", 0, "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*map(str, args), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "5 objects" in printed.out
    assert "written to" not in printed.out
    assert "error: No space left on device" in printed.err


@pytest.mark.tool
def test_two_processes_equal_one(paths, tmp_path):
    checkpoint, coco = paths
    args = ["--checkpoint", checkpoint, "--annotations", coco.json, "--images", coco.images]
    args = [*map(str, args), "--workers", "0", "--device", "cpu", "--output"]
    main([*args, str(tmp_path / "one")])
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, str(tiny.REPOSITORY / "tools/eval.py"), *args, str(tmp_path / "two")]
    subprocess.run([sys.executable, "-m", *command], check=True, env=tiny.environment())
    for file in ("results_box.json", "results_mask.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]
    assert one["classes"] == two["classes"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint", "absent.ckpt"], "absent.ckpt"),
        (
            ["--data", "absent"],
            "absent does not exist; --data (a folder, or tabletop), or --annotations "
            "and --images name the set to evaluate",
        ),
        (["--score_threshold", "7"], "score_threshold is 7.0"),
        (["--workers", "-1"], "workers"),
        (["--precision", "bf16"], "precision is 'bf16'; 32-true or bf16-mixed is allowed"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(paths, capsys, args, message):
    assert message in tiny.error(main, ["--checkpoint", str(paths[0]), *args], capsys)
