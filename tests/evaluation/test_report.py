from condseg.evaluation import ClassResult, Report


def report():
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "ARl", "AR@1", "AR@10", "AR@100"]
    metrics = {f"{k}/{n}": -1.0 if "l" in n else 0.5 for k in ("box", "mask") for n in names}
    objects = {"all": 3, "small": 2, "medium": 1, "large": 0}
    none = dict.fromkeys(objects, 0)
    classes = (
        ClassResult(1, "Löffel", objects, metrics),
        ClassResult(4, "Sieb", none, dict.fromkeys(metrics, -1.0)),
    )
    return Report(metrics, classes, objects, 2, 2, 9)


def test_every_minus_one_is_explained():
    explained = report().explanations
    names = {"box/APl", "mask/APl", "box/ARl", "mask/ARl", "class Löffel", "class Sieb"}
    assert set(explained) == names
    assert explained["class Löffel"] == "no large objects of this class in this set"
    assert "no large objects" in explained["mask/APl"]
    content = report().as_dict()
    assert content["metrics"]["mask/AP"] == 0.5
    assert content["classes"][0]["name"] == "Löffel"
    assert content["explanations"] == explained


def test_the_table_has_values_classes_and_reasons():
    text = report().table()
    assert text.startswith("2 images, 3 objects (2 small, 1 medium, 0 large), 9 detections")
    assert "| mask | 0.500 |" in text
    assert "Löffel" in text
    assert "-1 for Sieb: no objects of this class in this set" in text
    assert "-1 for a class: no objects of that size" in text
    assert "Löffel" not in report().table(per_class=False)
    assert max(map(len, text.splitlines())) <= 120
