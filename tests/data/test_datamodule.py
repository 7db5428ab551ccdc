import pytest
import torch

from condseg.data.datamodule import DataModule
from condseg.data.files import DataNotFoundError
from condseg.structures import Category

SMALL = {"short_sides": (24, 32), "max_long_side": 64, "val_short_side": 32, "workers": 0}


@pytest.fixture
def root(coco_set):
    coco_set("train", [(40, 60)] * 5 + [(60, 40)] * 4)
    return coco_set("val", [(40, 60), (60, 40), (30, 30)]).root


def test_batches_of_both_sets(root):
    data = DataModule(str(root), batch_size=4, **SMALL)
    assert data.categories == (Category(3, "box"), Category(7, "disc"))
    assert data.num_classes == 2
    assert data.val_annotation_file.endswith("instances_val.json")
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4]
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    infos = [info for batch in data.val_dataloader() for info in batch.infos]
    assert [info.image_id for info in infos] == [100, 101, 102]
    assert [info.size for info in infos] == [(32, 48), (48, 32), (32, 32)]


@pytest.mark.parametrize(
    "names",
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "{}"),
        ("instances_{}2017.json", "images"),
    ],
)
def test_supported_layouts(tmp_path, names):
    files = {}
    for split in ("train", "val"):
        file, folder = files[split] = tuple(tmp_path / name.format(split) for name in names)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        folder.mkdir(exist_ok=True)
    data = DataModule(str(tmp_path))
    assert (data.train_files, data.val_files) == (files["train"], files["val"])
    named = tmp_path / "named.json"
    named.touch()
    data = DataModule(str(tmp_path), train_annotations=str(named))
    assert data.train_files == (named, files["train"][1])


def test_missing_files_message(tmp_path):
    with pytest.raises(DataNotFoundError) as error:
        DataModule(str(tmp_path))
    for part in ("condseg download", "--config tabletop", str(tmp_path)):
        assert part in str(error.value)


def test_sets_with_other_categories(coco_set):
    root = coco_set("train").root
    val = coco_set("val")
    val.content["categories"][0]["name"] = "mug"
    val.write()
    with pytest.raises(ValueError, match=r"same categories.*first: 7 'disc'.*second: 7 'mug'"):
        DataModule(str(root), **SMALL).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"val_short_side": 2000}, "max_long_side is 1333; allowed is >= 2000"),
        ({"crop": 0.7}, "crop is 0.7"),
    ],
)
def test_values_out_of_range(root, options, message):
    with pytest.raises(ValueError, match=message):
        DataModule(str(root), **options)


def test_images_of_one_aspect_share_a_batch(root):
    data = DataModule(str(root), batch_size=2, **SMALL)
    for batch in data.train_dataloader():  # 5 landscape, 4 portrait: the odd one is left out
        assert len({height > width for height, width in batch.sizes}) == 1
