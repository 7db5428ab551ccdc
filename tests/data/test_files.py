"""Data sets found by what their folder contains."""

import json
import shutil

import pytest
from support import tiny

from condseg.data.annotations import read_index
from condseg.data.datamodule import DataModule
from condseg.data.files import DataNotFoundError, find_files


@pytest.fixture
def root(tmp_path):
    """instances_train.json, instances_val.json, train/, val/."""
    return tiny.make_set(tmp_path / "set", 10, 2)


def found(root):
    return [path for split in ("train", "val") for path in find_files(root, split, None, None)]


def one_json(root, file):
    """Leaves one json, of the training set."""
    (root / "instances_val.json").unlink()
    shutil.rmtree(root / "val")
    file.parent.mkdir(exist_ok=True)
    return (root / "instances_train.json").rename(file)


def test_layouts(root):
    train, val = root / "instances_train.json", root / "instances_val.json"
    assert found(root) == [train, root / "train", val, root / "val"]
    # COCO's folder; other years; images of both sets in one folder
    (root / "annotations").mkdir()
    train = train.rename(root / "annotations/instances_train2014.json")
    val = val.rename(root / "annotations/instances_val2014.json")
    assert found(root) == [train, root / "train", val, root / "val"]
    for name in ("photos", "photos/first/day"):
        images = root / name
        images.mkdir(parents=True)
        for split in ("train", "val") if name == "photos" else ("photos",):
            for file in list((root / split).glob("*.png")):
                file.rename(images / file.name)
        assert found(root) == [train, images, val, images]


def test_roboflow(root):
    (root / "val").rename(root / "valid")
    files = [root / folder / "_annotations.coco.json" for folder in ("train", "valid")]
    for file, split in zip(files, ("train", "val"), strict=True):
        (root / f"instances_{split}.json").rename(file)
    assert found(root) == [files[0], root / "train", files[1], root / "valid"]
    shutil.rmtree(root / "valid")
    train, folder, val, val_folder = found(root)
    assert (train.name, val.name) == tuple(f"{files[0].name}@{part}" for part in ("train", "val"))
    assert folder == val_folder == root / "train"


@pytest.mark.parametrize("name", ["labels.json", "annotations/all.json", "train/x.json"])
def test_one_json_is_divided(root, name):
    file = one_json(root, root / name)
    given = file if name.startswith("train/") else root
    train_file, folder, val_file, val_folder = found(given)
    assert folder == val_folder == root / "train"
    train, val, whole = map(read_index, (train_file, val_file, file))
    ids = [set(part.images["id"].tolist()) for part in (train, val, whole)]
    assert ids[0] | ids[1] == ids[2]
    assert (len(ids[0]), len(ids[1])) == (8, 2)
    assert len(train.objects) + len(val.objects) == len(whole.objects)
    # The order of the file does not matter.
    content = json.loads(file.read_text())
    content["images"].reverse()
    file.write_text(json.dumps(content))
    assert set(read_index(val_file).images["id"].tolist()) == ids[1]


def test_training_with_one_json_says_what_is_held_out(root, monkeypatch):
    file, lines = one_json(root, root / "all.json"), []
    monkeypatch.setattr("condseg.data.datamodule.rank_zero_info", lines.append)
    data = DataModule(str(root), workers=0)
    assert lines[0].startswith(f"{file} has no validation set beside it: a fifth of its images")
    assert (len(data.val_dataset), len(data.val_dataset.categories)) == (2, 2)
    # Images elsewhere
    (root / "train").rename(root.parent / "elsewhere")
    options = {"train_images": str(root.parent / "elsewhere")}
    with pytest.raises(DataNotFoundError, match=r"first image of .*all\.json@val"):
        DataModule(str(file), workers=0, **options)
    options["val_images"] = options["train_images"]
    assert len(DataModule(str(file), workers=0, **options).val_dataset) == 2
    # With a validation set, nothing is held out.
    options["val_annotations"] = str(file)
    options["train_annotations"] = str(file)
    assert len(DataModule(workers=0, **options).val_dataset) == 10


def test_what_cannot_be_found_or_divided(root):
    with pytest.raises(DataNotFoundError, match=r"^data\.root: \S+/nowhere does not exist\. Own"):
        find_files(root / "nowhere", "train", None, None)
    shutil.copy(root / "instances_val.json", root / "a.json")
    (root / "instances_val.json").rename(root / "b.json")
    (root / "instances_train.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"which has .*a\.json, .*b\.json"):
        find_files(root, "train", None, None)
    content = json.loads((root / "a.json").read_text())
    content["images"], content["annotations"] = content["images"][:1], []
    (root / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json: has 1 images; a division needs 2 or more"):
        find_files(root / "a.json", "val", None, None)
