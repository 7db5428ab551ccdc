import pytest
from support.coco import CocoSet


@pytest.fixture
def coco_set(tmp_path):
    """Writes a set: ``coco_set(name, sizes, objects)``."""
    return lambda *args, **options: CocoSet(tmp_path / "set", *args, **options)
