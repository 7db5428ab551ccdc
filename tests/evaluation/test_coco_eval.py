"""The evaluator against pycocotools as one would run it by hand."""

import io
import json
import socket
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from condseg.evaluation import CocoEvaluator, to_records
from condseg.structures import Category, Detections, ImageInfo

# pycocotools' own decode under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (120, 160)
CATEGORIES = (Category(3, "cup"), Category(7, "fork"), Category(90, "straw"))
# pycocotools' order of stats
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
NAMES += ["AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"]


def rectangle(rng, low=4, high=90):
    height, width = rng.integers(low, high, 2)
    y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def annotation(number, image, category, mask, crowd=0):
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y, right, bottom = box_of(mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "area": int(mask.sum()),
        "bbox": [x, y, right - x, bottom - y],
        "segmentation": {"size": list(SIZE), "counts": code["counts"].decode()},
    }


def found(masks, labels, scores):
    n = len(masks)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    return Detections(
        torch.tensor([box_of(masks[i]) for i in order], dtype=torch.float32).reshape(n, 4),
        torch.tensor([scores[i] for i in order], dtype=torch.float32),
        torch.tensor([labels[i] for i in order], dtype=torch.int64),
        torch.from_numpy(np.stack([masks[i] for i in order]) if n else np.zeros((0, *SIZE), bool)),
    )


def info(image):
    return ImageInfo(image, f"{image}.jpg", SIZE, SIZE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Ground truth with a crowd, an empty picture, an unused class; noisy detections of it."""
    rng = np.random.default_rng(0)
    annotations, detections, number = [], {}, 1
    for image in (5, 11, 12, 300, 42):
        masks, labels, scores = [], [], []
        for _ in range(0 if image == 12 else 6):
            truth, label = rectangle(rng), int(rng.integers(0, 2))
            crowd = int(number == 4)
            annotations.append(annotation(number, image, CATEGORIES[label].id, truth, crowd))
            number += 1
            masks.append(np.roll(truth, rng.integers(-3, 4, 2), (0, 1)))
            labels.append(label)
            scores.append(float(rng.random()))
        for _ in range(3):
            masks.append(rectangle(rng))
            labels.append(int(rng.integers(0, 3)))
            scores.append(float(rng.random()))
        detections[image] = found(masks, labels, scores)
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in detections
    ]
    file = tmp_path_factory.mktemp("truth") / "instances.json"
    categories = [{"id": c.id, "name": c.name} for c in CATEGORIES]
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return file, detections


def by_hand(truth_file, results, kind, limits=None):
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluation = COCOeval(truth, truth.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        if limits:
            evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        if not limits:
            evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("limit", [100, 200])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_equals_pycocotools_by_hand_on_the_results_file(scene, tmp_path, kind, limit):
    file, detections = scene
    evaluator = CocoEvaluator(file, CATEGORIES, max_detections=limit)
    evaluator.update([info(i) for i in detections], list(detections.values()))
    report = evaluator.compute()
    written = tmp_path / "results.json"
    written.write_text(json.dumps(evaluator.results(kind)))
    stats = by_hand(file, str(written), kind).stats
    assert [report.metrics[f"{kind}/{name}"] for name in NAMES] == stats.tolist()
    assert 0.2 < report.metrics[f"{kind}/AP"] < 0.9
    assert (report.images, report.detections, report.notes) == (5, len(evaluator.records), ())


def test_more_than_a_hundred_detections_are_judged_at_both_limits(scene):
    file, _ = scene
    rng = np.random.default_rng(1)
    truth = COCO(str(file))
    anns = [a for a in truth.imgToAnns[5] if not a["iscrowd"]]
    noise = [rectangle(rng, 4, 20) for _ in range(150)]
    good = [truth.annToMask(a).astype(bool) for a in anns]
    labels = [0 if a["category_id"] == 3 else 1 for a in anns]
    evaluator = CocoEvaluator(file, CATEGORIES, max_detections=200)
    # the right ones of class 0 come after 150 wrong ones
    scores = [*np.linspace(0.9, 0.6, 150), *np.linspace(0.5, 0.4, len(good))]
    evaluator.update([info(5)], [found(noise + good, [0] * 150 + labels, scores)])
    report = evaluator.compute()
    assert report.metrics["mask/AP@200"] > report.metrics["mask/AP"]
    assert report.metrics["mask/AR@200"] == 1.0
    evaluation = by_hand(file, evaluator.results("mask"), "mask", [1, 10, 100, 200])
    evaluation.params.imgIds = [5]
    evaluation.evaluate()
    evaluation.accumulate()
    for name, m in (("AP", 2), ("AP@200", 3)):
        precision = evaluation.eval["precision"][:, :, :, 0, m]
        assert report.metrics[f"mask/{name}"] == precision[precision > -1].mean()
    assert report.notes == ("only 1 of the set's 5 pictures",)
    assert "@200" in report.table()


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one(scene, capsys):
    file, detections = scene
    evaluator = CocoEvaluator(file, CATEGORIES)
    evaluator.update([info(i) for i in detections], [found([], [], [])] * 5)
    report = evaluator.compute()
    assert report.metrics["box/AP"] == report.metrics["mask/AR@100"] == 0.0
    straw = report.classes[2]
    assert (straw.name, straw.objects["all"], straw.metrics["mask/AP"]) == ("straw", 0, -1)
    assert report.explanations["class straw"] == "no objects of this class in this set"
    evaluator.reset()
    evaluator.update([info(12)], [detections[12]])
    report = evaluator.compute()
    assert set(report.metrics.values()) == {-1.0}
    assert report.explanations["mask/APl"] == "no objects in this set"
    assert set(CocoEvaluator(file, CATEGORIES).compute().metrics.values()) == {-1.0}
    assert capsys.readouterr().out == ""


def test_ground_truth_as_detections_is_perfect_and_records_go_both_ways(scene):
    file, _ = scene
    truth = COCO(str(file))
    label = {c.id: k for k, c in enumerate(CATEGORIES)}
    evaluator = CocoEvaluator(file, CATEGORIES)
    for image in truth.imgs:
        anns = [a for a in truth.imgToAnns[image] if not a["iscrowd"]]
        masks = [truth.annToMask(a).astype(bool) for a in anns]
        labels = [label[a["category_id"]] for a in anns]
        evaluator.update([info(image)], [found(masks, labels, [0.9] * len(anns))])
    report = evaluator.compute()
    assert report.metrics["mask/AP"] == report.metrics["box/AP"] == pytest.approx(1.0)
    record = to_records(
        info(1), found([rectangle(np.random.default_rng(3))], [1], [0.5]), CATEGORIES
    )
    assert record[0]["category_id"] == 7
    assert rle.area(record[0]["segmentation"]) == np.prod(record[0]["bbox"][2:])


def changed(file, tmp_path, change):
    content = json.loads(file.read_text())
    change(content)
    other = tmp_path / "changed.json"
    other.write_text(json.dumps(content))
    return other


def test_annotations_from_id_0_without_area_and_crowd_mean_the_same(scene, tmp_path):
    file, detections = scene

    def change(content):
        for k, a in enumerate(content["annotations"]):
            a["id"] = k
            del a["area"], a["bbox"]
            if not a["iscrowd"]:
                del a["iscrowd"]

    reports = []
    for f in (file, changed(file, tmp_path, change)):
        evaluator = CocoEvaluator(f, CATEGORIES)
        evaluator.update([info(i) for i in detections], list(detections.values()))
        reports.append(evaluator.compute())
    assert reports[0].metrics == reports[1].metrics
    assert "annotation id 0" in reports[1].notes[0]


def test_another_set_is_matched_by_class_name(scene, tmp_path):
    file, detections = scene
    ids = {3: 1, 7: 2, 90: 3}

    def change(content):
        for entry in content["categories"]:
            entry["id"] = ids[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = ids[entry["category_id"]]

    reports = []
    for f, model in ((file, CATEGORIES), (changed(file, tmp_path, change), CATEGORIES)):
        evaluator = CocoEvaluator(f, model)
        evaluator.update([info(i) for i in detections], list(detections.values()))
        reports.append(evaluator.compute())
    assert reports[0].metrics == reports[1].metrics
    some = CocoEvaluator(file, (*CATEGORIES, Category(4, "kite")))
    assert some.compute().notes[0] == "not judged, for the set has no such classes: kite"
    with pytest.raises(ValueError, match="none of the model's classes"):
        CocoEvaluator(file, (Category(3, "kite"),))


class IgnoringOthers(COCOeval):
    """The rule said in pycocotools' own words, after it has overwritten ``ignore``."""

    def _prepare(self):
        super()._prepare()
        for annotations in self._gts.values():
            for a in annotations:
                a["ignore"] = a["ignore"] or not 0.2 <= a["visibility"] <= 0.7


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_objects_outside_a_range_of_visibility_are_ignored(scene, tmp_path, kind):
    _, detections = scene
    rng = np.random.default_rng(2)

    def change(content):
        for a in content["annotations"]:
            a["visibility"] = float(rng.choice([0.1, 0.2, 0.5, 0.7, 0.9]))

    file = changed(scene[0], tmp_path, change)
    evaluator = CocoEvaluator(file, CATEGORIES, visibility=(0.2, 0.7))
    evaluator.update([info(i) for i in detections], list(detections.values()))
    report = evaluator.compute()
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        results = truth.loadRes(evaluator.results(kind))
        oracle = IgnoringOthers(truth, results, {"box": "bbox", "mask": "segm"}[kind])
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    assert [report.metrics[f"{kind}/{name}"] for name in NAMES] == oracle.stats.tolist()
    anns = [a for a in truth.anns.values() if not a["iscrowd"]]
    count = sum(0.2 <= a["visibility"] <= 0.7 for a in anns)
    assert 0 < count < len(anns) == 23
    assert report.objects["all"] == count
    assert report.notes == (
        f"only the {count} of 23 objects with a visibility of 0.2 to 0.7 are judged, the others "
        "ignored",
    )
    everything = CocoEvaluator(file, CATEGORIES)
    everything.update([info(i) for i in detections], list(detections.values()))
    assert everything.compute().metrics["mask/AP"] != report.metrics["mask/AP"]


def test_visibility_that_cannot_be_judged_by(scene):
    with pytest.raises(ValueError, match=r"visibility is 0.7..0.2; allowed is 0 <= low"):
        CocoEvaluator(scene[0], CATEGORIES, visibility=(0.7, 0.2))
    with pytest.raises(ValueError, match=r"json: 23 of 23 objects have no visibility .* image 5"):
        CocoEvaluator(scene[0], CATEGORIES, visibility=(0.0, 0.7))


def test_errors_name_the_file_and_the_picture(scene, tmp_path):
    file, detections = scene
    evaluator = CocoEvaluator(file, CATEGORIES)
    evaluator.update([info(5)], [detections[5]])
    with pytest.raises(
        ValueError, match=r"instances.json: image id 5 \(5.jpg\) was evaluated twice"
    ):
        evaluator.update([info(5)], [detections[5]])
    with pytest.raises(ValueError, match=r"image id 6 .* is not in this file"):
        evaluator.update([info(6)], [detections[5]])
    none = torch.zeros(0)
    small = Detections(none.reshape(0, 4), none, none.long(), torch.zeros(0, 9, 9) > 0)
    with pytest.raises(ValueError, match="120 x 160"):
        evaluator.update([info(11)], [small])
    (tmp_path / "a.json").write_text("[1,")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON"):
        CocoEvaluator(tmp_path / "a.json", CATEGORIES)
    (tmp_path / "b.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks"):
        CocoEvaluator(tmp_path / "b.json", CATEGORIES)


def _rank(rank, port, file, detections, all_shares, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number, shares in enumerate(all_shares):
        evaluator = CocoEvaluator(file, CATEGORIES)
        for image in shares[rank]:
            evaluator.update([info(image)], [detections[image]])
        try:
            text = evaluator.compute().to_json()
        except ValueError as error:
            text = f"error: {error}"
        (folder / f"{number}_{rank}.json").write_text(text)
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_same_to_the_last_digit_and_no_picture_counts_twice(scene, tmp_path):
    file, detections = scene
    evaluator = CocoEvaluator(file, CATEGORIES)
    evaluator.update([info(i) for i in detections], list(detections.values()))
    alone = evaluator.compute().to_json()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    unequal, none_on_one, twice = (
        ((300, 11, 5, 42), (12,)),
        ((), (5, 11, 12, 42, 300)),
        ((11,), (11,)),
    )
    mp.spawn(_rank, (port, *scene, (unequal, none_on_one, twice), tmp_path), nprocs=2)
    for number in (0, 1):
        for rank in (0, 1):
            assert (tmp_path / f"{number}_{rank}.json").read_text() == alone
    assert all("[11]" in (tmp_path / f"2_{rank}.json").read_text() for rank in (0, 1))
