"""The evaluator against pycocotools called directly."""

import codecs
import json
import socket
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.coco import compressed, pycocotools
from support.counting import use_device_form

from condseg.evaluation import CocoEvaluator, to_records
from condseg.evaluation.coco_eval import KINDS
from condseg.evaluation.records import start_records
from condseg.structures import Category, Detections, ImageInfo

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
    x, y, right, bottom = box_of(mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "area": int(mask.sum()),
        "bbox": [x, y, right - x, bottom - y],
        "segmentation": compressed(mask),
    }


def detections_of(masks, labels, scores):
    scores = torch.tensor(scores, dtype=torch.float32)
    boxes = torch.tensor([box_of(mask) for mask in masks], dtype=torch.float32).reshape(-1, 4)
    masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE))
    order = scores.argsort(descending=True, stable=True)
    labels = torch.tensor(labels, dtype=torch.int64)
    return Detections(boxes[order], scores[order], labels[order], masks[order])


def info(image):
    return ImageInfo(image, f"{image}.jpg", SIZE, SIZE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Ground truth with a crowd, an empty image, an unused class; noisy detections of it."""
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
        detections[image] = detections_of(masks, labels, scores)
    size = {"height": SIZE[0], "width": SIZE[1]}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} | size for i in detections],
        "annotations": annotations,
        "categories": [asdict(category) for category in CATEGORIES],
    }
    file = tmp_path_factory.mktemp("truth") / "instances.json"
    file.write_text(json.dumps(content))
    return file, detections


def evaluated(file, detections, categories=CATEGORIES, **options):
    evaluator = CocoEvaluator(file, categories, **options)
    evaluator.update([info(i) for i in detections], list(detections.values()))
    return evaluator, evaluator.compute()


def values(report, kind):
    return [report.metrics[f"{kind}/{name}"] for name in NAMES]


@pytest.mark.parametrize("limit", [100, 200])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_equals_pycocotools_on_the_results_file(scene, tmp_path, kind, limit):
    file, detections = scene
    evaluator, report = evaluated(file, detections, max_detections=limit)
    written = tmp_path / "results.json"
    written.write_text(json.dumps(evaluator.results(kind)))
    assert values(report, kind) == pycocotools(file, str(written), KINDS[kind]).stats.tolist()
    assert 0.2 < report.metrics[f"{kind}/AP"] < 0.9
    assert (report.images, report.detections, report.notes) == (5, len(evaluator.records), ())


def test_more_than_100_detections_are_evaluated_at_both_limits(scene):
    file, _ = scene
    rng = np.random.default_rng(1)
    truth = COCO(str(file))
    anns = [a for a in truth.imgToAnns[5] if not a["iscrowd"]]
    noise = [rectangle(rng, 4, 20) for _ in range(150)]
    correct = [truth.annToMask(a).astype(bool) for a in anns]
    labels = [0 if a["category_id"] == 3 else 1 for a in anns]
    # The correct ones of class 0 come after 150 wrong ones.
    scores = [*np.linspace(0.9, 0.6, 150), *np.linspace(0.5, 0.4, len(correct))]
    of_image = {5: detections_of(noise + correct, [0] * 150 + labels, scores)}
    evaluator, report = evaluated(file, of_image, max_detections=200)
    assert report.metrics["mask/AP@200"] > report.metrics["mask/AP"]
    assert report.metrics["mask/AR@200"] == 1.0
    limits = [1, 10, 100, 200]
    evaluation = pycocotools(file, evaluator.results("mask"), "segm", limits=limits, images=[5])
    for name, m in (("AP", 2), ("AP@200", 3)):
        precision = evaluation.eval["precision"][:, :, :, 0, m]
        assert report.metrics[f"mask/{name}"] == precision[precision > -1].mean()
    assert report.notes == ("only 1 of the set's 5 images",)
    assert "@200" in report.table()


def test_no_detections_are_0_and_no_objects_are_minus_1(scene, capsys):
    file, detections = scene
    _, report = evaluated(file, dict.fromkeys(detections, detections_of([], [], [])))
    assert report.metrics["box/AP"] == report.metrics["mask/AR@100"] == 0.0
    straw = report.classes[2]
    assert (straw.name, straw.objects["all"], straw.metrics["mask/AP"]) == ("straw", 0, -1)
    assert report.explanations["class straw"] == "no objects of this class in this set"
    evaluator, report = evaluated(file, {12: detections[12]})
    assert set(report.metrics.values()) == {-1.0}
    assert report.explanations["mask/APl"] == "no objects in this set"
    evaluator.reset()
    assert set(evaluator.compute().metrics.values()) == {-1.0}
    assert capsys.readouterr().out == ""


def test_records():
    mask = rectangle(np.random.default_rng(3))
    (record,) = to_records(info(1), detections_of([mask], [1], [0.5]), CATEGORIES)
    assert record["category_id"] == 7
    assert rle.area(record["segmentation"]) == np.prod(record["bbox"][2:])
    assert to_records(info(1), detections_of([mask], [1], [0.5]), (None, None)) == []


def changed(file, tmp_path, change):
    content = json.loads(file.read_text())
    change(content)
    other = tmp_path / "changed.json"
    other.write_text(json.dumps(content))
    return other


def remove_optional_fields(content):
    for k, a in enumerate(content["annotations"]):
        a["id"] = k
        del a["area"], a["bbox"]
        if not a["iscrowd"]:
            del a["iscrowd"]


def renumber_categories(content):
    for list_, key in (("categories", "id"), ("annotations", "category_id")):
        for entry in content[list_]:
            entry[key] = {3: 1, 7: 2, 90: 3}[entry[key]]


def optional_fields_null(content):
    for annotation in content["annotations"]:
        annotation |= dict.fromkeys(("area", "bbox"))
        if not annotation["iscrowd"]:
            annotation["iscrowd"] = None


@pytest.mark.parametrize(
    "change", [remove_optional_fields, optional_fields_null, renumber_categories]
)
def test_equivalent_files_have_equal_results(scene, tmp_path, change):
    file, detections = scene
    _, expected = evaluated(file, detections)
    other = changed(file, tmp_path, change)
    other.write_bytes(codecs.BOM_UTF8 + other.read_bytes())
    _, report = evaluated(other, detections)
    assert report.metrics == expected.metrics
    assert any("annotation id 0" in n for n in report.notes) == (change is remove_optional_fields)


def test_unknown_classes(scene):
    evaluator = CocoEvaluator(scene[0], (*CATEGORIES, Category(4, "kite")))
    assert evaluator.compute().notes[0] == "not evaluated, since the set has no such classes: kite"
    with pytest.raises(ValueError, match="none of the model's classes"):
        CocoEvaluator(scene[0], (Category(3, "kite"),))


class IgnoringOthers(COCOeval):
    """The range of visibility by pycocotools' own ``ignore``, after it was overwritten."""

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
    evaluator, report = evaluated(file, detections, visibility=(0.2, 0.7))
    expected = pycocotools(file, evaluator.results(kind), KINDS[kind], IgnoringOthers)
    assert values(report, kind) == expected.stats.tolist()
    anns = [a for a in json.loads(file.read_text())["annotations"] if not a["iscrowd"]]
    count = sum(0.2 <= a["visibility"] <= 0.7 for a in anns)
    assert 0 < count < len(anns) == 23
    assert report.objects["all"] == count
    assert report.notes[0].startswith(f"only the {count} of 23 objects with a visibility of 0.2 to")
    assert evaluated(file, detections)[1].metrics["mask/AP"] != report.metrics["mask/AP"]


def test_invalid_visibility(scene):
    with pytest.raises(ValueError, match=r"visibility is 0.7..0.2; allowed is 0 <= low"):
        CocoEvaluator(scene[0], CATEGORIES, visibility=(0.7, 0.2))
    with pytest.raises(ValueError, match=r"json: 23 of 23 objects have no visibility .* image 5"):
        CocoEvaluator(scene[0], CATEGORIES, visibility=(0.0, 0.7))


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (5, SIZE, r"instances.json: image id 5 \(5.jpg\) was evaluated twice"),
        (6, SIZE, "image id 6 .* is not in this file"),
        (11, (9, 9), "is 120 x 160 .* its masks are 9 x 9"),
    ],
)
def test_errors_name_the_file_and_the_image(scene, image, size, message):
    file, detections = scene
    evaluator, _ = evaluated(file, {5: detections[5]})
    empty = replace(detections_of([], [], []), masks=torch.zeros(0, *size) > 0)
    with pytest.raises(ValueError, match=message):
        evaluator.update([info(image)], [empty])


LARGE = 10**9


@pytest.mark.parametrize(
    ("size", "segmentation", "message"),
    [
        ((LARGE, LARGE), [[0, 0, LARGE, 0, LARGE, LARGE, 0, LARGE]], "50331648 pixels"),
        (SIZE, [[0, 0, LARGE, 0, LARGE, LARGE, 0, LARGE]], "more than one image size outside"),
        (SIZE, [[0, 0, float("inf"), 0, 9, 9]], "finite"),
        (SIZE, [[0, 0, 2**53, 0, 9, 9]], "more than one image size outside"),
        (SIZE, {"size": list(SIZE), "counts": "o"}, "invalid"),
        (SIZE, {"size": list(SIZE), "counts": [5]}, "5 pixels in total"),
    ],
)
def test_what_pycocotools_cannot_read(scene, tmp_path, size, segmentation, message):
    """It crashes on these, or never ends."""

    def change(content):
        content["images"][0] |= dict(zip(("height", "width"), size, strict=True))
        content["annotations"] = content["annotations"][:1]
        content["annotations"][0] |= {"segmentation": segmentation, "area": None}

    with pytest.raises(ValueError, match=rf"changed\.json: (image 5|annotation 1 ).*{message}"):
        CocoEvaluator(changed(scene[0], tmp_path, change), CATEGORIES)


@pytest.mark.parametrize("content", ["[1,", '{"images": []}'])
def test_files_that_are_no_ground_truth(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: (not a valid json|.*is missing)"):
        CocoEvaluator(tmp_path / "a.json", CATEGORIES)


def _rank(rank, port, file, detections, all_parts, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number, parts in enumerate(all_parts):
        try:
            _, report = evaluated(file, {image: detections[image] for image in parts[rank]})
            text = json.dumps(report.as_dict())
        except ValueError as error:
            text = f"error: {error}"
        (folder / f"{number}_{rank}.json").write_text(text)
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_and_no_image_counts_twice(scene, tmp_path):
    alone = json.dumps(evaluated(*scene)[1].as_dict())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    parts = (
        ((300, 11, 5, 42), (12,)),  # unequal
        ((), (5, 11, 12, 42, 300)),  # none on one rank
        ((11,), (11,)),  # twice
    )
    mp.start_processes(_rank, (port, *scene, parts, tmp_path), nprocs=2, start_method="fork")
    for rank in (0, 1):
        texts = [(tmp_path / f"{number}_{rank}.json").read_text() for number in range(3)]
        assert texts[:2] == [alone, alone]
        assert "[11]" in texts[2]


def test_run_lengths_of_the_device_are_those_of_pycocotools(monkeypatch):
    """Images of any sizes; empty, whole, noisy and thin masks, and images without any."""
    random = torch.Generator().manual_seed(0)
    noise = (torch.rand(6, 33, 21, generator=random) > 0.5) & (torch.arange(6) % 3 > 0)[
        :, None, None
    ]
    noise[2] = True
    stripes = torch.zeros(2, 50, 60, dtype=torch.bool)
    stripes[0, :, ::2] = stripes[1, 20:] = True
    masks = [noise, stripes[:, :40, :31], torch.zeros(0, 4, 4, dtype=torch.bool), stripes[:1, :1]]
    infos = [info(k) for k in range(len(masks))]
    found = []
    for of_image in masks:
        n = len(of_image)
        found.append(Detections(torch.rand(n, 4), torch.rand(n), torch.arange(n) % 3, of_image))
    expected = [to_records(*pair, CATEGORIES) for pair in zip(infos, found, strict=True)]
    use_device_form(monkeypatch)
    for pixels in (2**30, 100):
        monkeypatch.setattr("condseg.ops.rle.PIXELS", pixels)
        assert start_records(infos, found, CATEGORIES)() == expected
    assert start_records(infos[2:3], found[2:3], CATEGORIES)() == [[]]


def test_an_evaluation_on_the_device(monkeypatch, scene):
    """Records of images are made after the next ones were added, or when they are read."""
    file, detections = scene
    expected = evaluated(file, detections)[0].records
    use_device_form(monkeypatch)
    evaluator = CocoEvaluator(file, CATEGORIES)
    for image, of_image in detections.items():
        evaluator.update([info(image)], [of_image])
    assert evaluator.records == expected
