"""The plan of a training on own data."""

from dataclasses import replace

import pytest
from support.coco import CocoSet

from condseg.training.plan import DataSummary, Machine, describe, plan

CPU = Machine(cores=2, gpu=False, lite_weights=True)
SET = DataSummary(
    train_images=136,
    val_images=34,
    classes=1,
    short_side=380,
    object_side=150.0,
    mean_objects=2.5,
    max_objects=8,
    supervision="masks",
)


@pytest.mark.parametrize(
    ("data", "machine", "expected"),
    [
        ({}, {}, (272, 91, 4, 320)),
        ({"train_images": 3}, {}, (240, 80, 3, 320)),
        ({"train_images": 100_000}, {}, (2000, 667, 4, 320)),
        ({"val_images": 900}, {}, (272, 225, 4, 320)),
        ({"short_side": 100}, {}, (272, 91, 4, 160)),
        # Objects of 16 pixels are enlarged to 24.
        ({"short_side": 200, "object_side": 16.0}, {}, (272, 91, 4, 304)),
        ({"short_side": 1200}, {"cores": 16}, (272, 91, 4, 480)),
        ({"short_side": 1200}, {"gpu": True}, (1000, 334, 8, 640)),
    ],
)
def test_steps_and_sizes(data, machine, expected):
    config = plan(replace(SET, **data), replace(CPU, **machine))
    trainer, of_data = config["trainer"], config["data"]
    values = trainer["max_steps"], trainer["val_check_interval"]
    assert (*values, of_data["batch_size"], of_data["val_short_side"]) == expected


def test_objects_weights_and_supervision():
    config = plan(replace(SET, mean_objects=39.0, max_objects=183, supervision="boxes"), CPU)
    assert config["model"]["postprocess"]["max_detections"] == 183
    assert config["model"]["mask_loss"]["topk_proposals_per_image"] == 64
    assert config["data"]["supervision"] == "boxes"
    assert config["model"]["network"] == {}
    backbone = plan(SET, replace(CPU, lite_weights=False))["model"]["network"]["backbone"]
    assert backbone == {"weights": None, "freeze_stages": 0}


def test_the_summary_of_a_set(tmp_path):
    train = CocoSet(tmp_path, "train")
    val = CocoSet(tmp_path, "val", sizes=[(30, 30)] * 2)
    train.content["annotations"].pop()  # the third image has one object
    train.add(100, [], [0, 0, 20, 20], iscrowd=1)
    train.write()
    sets = [(coco.json, coco.images) for coco in (train, val)]
    summary = DataSummary.of(*sets)
    assert summary == DataSummary(3, 2, 2, 40, 6.0, 5 / 3, 2, "masks")
    del train.content["annotations"][0]["segmentation"]
    train.write()
    assert DataSummary.of(*sets).supervision == "mixed"
    for annotation in train.content["annotations"]:
        annotation["segmentation"] = None
    train.write()
    assert DataSummary.of(*sets).supervision == "boxes"
    train.content["annotations"] = []
    train.write()
    with pytest.raises(ValueError, match="no images with objects"):
        DataSummary.of(*sets)


@pytest.mark.parametrize(("sides", "text"), [([160, 128], "128 to 160"), ([128], "128")])
def test_the_plan_in_words(sides, text):
    config = plan(SET, CPU)
    config["model"]["network"] = {"backbone": {"name": "resnet50"}}
    config["data"]["short_sides"] = sides
    lines = describe(config, SET, "weights imagenet").splitlines()
    assert (
        lines[2] == "  model       CondInst on resnet50, weights imagenet  [--init_from, --config]"
    )
    assert lines[4].startswith(f"  short side  320 in validation, {text} in training  [")
    assert lines[5].startswith("  steps       272 of 4 images (8.0 times each image)  [")
