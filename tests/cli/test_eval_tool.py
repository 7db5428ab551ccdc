"""tools/eval.py, condseg.cli.eval: its figures against pycocotools used directly."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.tiny_model import write_checkpoint, write_set

from condseg.cli.eval import main

# pycocotools' own decode under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOOL = Path(__file__).parents[2] / "tools" / "eval.py"


@pytest.fixture
def paths(tmp_path):
    return write_checkpoint(tmp_path / "best.ckpt"), write_set(tmp_path / "set")


def test_table_and_json_equal_pycocotools_directly(paths, tmp_path, capsys):
    checkpoint, root = paths
    common = ["--checkpoint", checkpoint, "--data", root, "--workers", 0, "--device", "cpu"]
    main([*map(str, common), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "5 objects" in printed
    assert "-1 for spoon: no objects of this class in this set" in printed
    assert "images/s" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images_per_second"] > 0
    stages = {"load", "pre-process", "backbone", "FPN", "heads", "decode + NMS", "mask head"}
    stages |= {"post-process", "RLE"}
    assert set(summary["seconds_by_stage"]) == stages
    assert all(f"\n{stage} " in printed for stage in stages)
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        with redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "instances_val.json"))
            found = truth.loadRes(str(tmp_path / "out" / f"results_{kind}.json"))
            evaluation = COCOeval(truth, found, iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100"]
        ours = [summary["metrics"][f"{kind}/{name}"] for name in [*names, "ARs", "ARm", "ARl"]]
        assert ours == evaluation.stats.tolist()


@pytest.mark.tool
def test_two_processes_equal_one(paths, tmp_path):
    checkpoint, root = paths
    args = ["--checkpoint", checkpoint, "--annotations", root / "instances_val.json"]
    args = [*args, "--images", root / "val", "--workers", "0", "--device", "cpu", "--output"]
    main(list(map(str, [*args, tmp_path / "one"])))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc_per_node", "2", str(TOOL), *map(str, args), str(tmp_path / "two")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(TOOL.parents[1])},
    )
    for file in ("results_box.json", "results_mask.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert one["metrics"] == two["metrics"]
    assert one["classes"] == two["classes"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint", "absent.ckpt"], "absent.ckpt"),
        (["--data", "absent"], "absent"),
        (["--score_threshold", "7"], "score_threshold is 7.0"),
        (["--workers", "-1"], "workers"),
        (["--precision", "bf16"], "precision is 'bf16'; 32-true or bf16-mixed is allowed"),
    ],
)
def test_a_users_error_is_one_line_and_code_2(paths, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, ["--checkpoint", paths[0], *args])))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
