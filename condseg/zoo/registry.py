"""Models that other projects have published: names, addresses, figures."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

DEFAULT_MODEL = "rtmdet_ins_m"
"""Of the models that may be used freely, the one in the middle."""
_OPENMMLAB = "https://download.openmmlab.com/mmdetection/v3.0"
DRIVE = "https://drive.google.com/file/d"

LICENCES = {
    "AdelaiDet": "for non-commercial use only, "
    "see https://github.com/aim-uofa/AdelaiDet/blob/master/LICENSE",
    "mmdetection": "Apache-2.0",
}


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A detector trained on COCO's train2017.

    Attributes:
        name: on the command line.
        config: the configuration that trains such a network. What differs (the backbone's style,
            the width of mmdetection's BoxInst mask head) is read from the weights.
        project: a key of ``LICENCES``.
        folder: a repository of the Hugging Face hub, or the address of a folder.
        file: name of the file in it.
        box_ap, mask_ap: published AP on val2017, 0..100.
    """

    name: str
    config: str
    project: Literal["AdelaiDet", "mmdetection"]
    folder: str
    file: str
    box_ap: float
    mask_ap: float

    @property
    def on_hub(self) -> bool:
        return "://" not in self.folder

    @property
    def licence(self) -> str:
        return LICENCES[self.project]


def _adelaidet(original: str, box_ap: float, mask_ap: float) -> PublishedModel:
    """``CondInst_MS_R_50_3x_sem`` is condinst_r50_3x_sem, trained by condinst_r50_sem.yaml.

    One file has no ``MS_`` in its name.
    """
    name = original.replace("_MS_", "_").replace("_R_", "_r").lower()
    repository = f"tianzhi/AdelaiDet-{original.partition('_')[0]}"
    config = re.sub(r"_[13]x", "", name) + ".yaml"
    file = f"{original}.pth"
    return PublishedModel(name, config, "AdelaiDet", repository, file, box_ap, mask_ap)


def _mmdetection(stem: str, box_ap: float, mask_ap: float) -> PublishedModel:
    """A file ``condinst_r50_fpn_..._<date>_<time>-<digits of SHA-256>.pth``."""
    kind, depth, *_ = stem.split("_")
    folder = f"{_OPENMMLAB}/{kind}/{stem.rsplit('_', 2)[0]}"
    name, file = f"{kind}_{depth}", f"{stem}.pth"
    return PublishedModel(
        f"{name}_mmdet", f"{name}.yaml", "mmdetection", folder, file, box_ap, mask_ap
    )


def _rtmdet(
    size: str, stem: str, box_ap: float, mask_ap: float, batch: str = "8xb32"
) -> PublishedModel:
    """``stem`` is the date, time and digits of the SHA-256 of mmdetection's file."""
    original, name = f"rtmdet-ins_{size}_{batch}-300e_coco", f"rtmdet_ins_{size}"
    folder, file = f"{_OPENMMLAB}/rtmdet/{original}", f"{original}_{stem}.pth"
    return PublishedModel(name, f"{name}.yaml", "mmdetection", folder, file, box_ap, mask_ap)


MODELS = {
    model.name: model
    for model in (
        _rtmdet("tiny", "20221130_151727-ec670f7e", 40.5, 35.4),
        _rtmdet("s", "20221121_212604-fdc5d7ec", 44.0, 38.7),
        _rtmdet("m", "20221123_001039-6eba602e", 48.8, 42.1),
        _rtmdet("l", "20221124_103237-78d1d652", 51.2, 43.7),
        _rtmdet("x", "20221124_111313-33d4595b", 52.4, 44.6, batch="8xb16"),
        _adelaidet("CondInst_MS_R_50_1x", 39.7, 35.7),
        _adelaidet("CondInst_MS_R_50_3x", 41.9, 37.5),
        _adelaidet("CondInst_MS_R_101_3x", 43.3, 38.6),
        _adelaidet("CondInst_MS_R_50_3x_sem", 42.6, 38.2),
        _adelaidet("CondInst_MS_R_101_3x_sem", 44.6, 39.8),
        _adelaidet("CondInst_MS_R_50_BiFPN_1x", 42.5, 37.3),
        _adelaidet("CondInst_MS_R_50_BiFPN_3x", 44.3, 38.9),
        _adelaidet("CondInst_MS_R_50_BiFPN_3x_sem", 44.7, 39.4),
        _adelaidet("CondInst_MS_R_101_BiFPN_3x", 45.3, 39.6),
        _adelaidet("CondInst_R_101_BiFPN_3x_sem", 45.7, 40.2),
        _adelaidet("BoxInst_MS_R_50_1x", 39.4, 30.7),
        _adelaidet("BoxInst_MS_R_50_3x", 41.5, 31.8),
        _adelaidet("BoxInst_MS_R_101_1x", 41.4, 32.2),
        _adelaidet("BoxInst_MS_R_101_3x", 43.3, 33.0),
        _adelaidet("BoxInst_MS_R_101_BiFPN_3x", 45.4, 34.1),
        _adelaidet("BoxInst_MS_R_101_BiFPN_dcni3_3x", 46.4, 34.8),
        _mmdetection(
            "condinst_r50_fpn_ms-poly-90k_coco_instance_20221129_125223-4c186406", 39.8, 36.0
        ),
        _mmdetection("boxinst_r50_fpn_ms-90k_coco_20221228_163052-6add751a", 39.4, 30.8),
        _mmdetection("boxinst_r101_fpn_ms-90k_coco_20221229_145106-facf375b", 41.8, 32.7),
    )
}


def unknown_model(name: str) -> str:
    """The message for a name that is not in ``MODELS``."""
    near = difflib.get_close_matches(name.lower(), MODELS, 1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    return f"no published model is called {name}{hint} There are {', '.join(MODELS)}"


BACKBONES = (
    ("resnet18", 1, "1AxCKAHJve3fbe2SnvoHsSucNvjv5Dxow", 73.05),
    ("resnet18", 4, "1Krsaa0fBKluFCyO7nmg-R9LlsoSUjJj2", 74.19),
    ("resnet50", 1, "1Aqwv6uQ9iI8a8Z5vjqmKuSTar0U8gfVJ", 77.87),
    ("resnet50", 4, "1uO774twnIYLiDV2BAsVM136k4EAhs6oh", 78.50),
    ("resnet50", 4, "1NZKfB0dttJSmnlNbCVPc1OIIhkc2OjMe", None),
    ("resnet101", 1, "1PJNcrw2RP9xG-18gw2NE93mwVmQBIbeM", 78.84),
    ("resnet101", 2, "1ph0woQfR2Ut2JfV4RKQPB6tAXf9pZmTo", 79.15),
    ("mobilenetv2_050", 1, "137qpjBdLjQ6MNNQ-YbqgWZeTEAq7AM_2", 68.06),
    ("mobilenetv2_050", 4, "1x2bB8GxNAKfvO-_MX-9Z9mqABBfHkYed", 70.23),
    ("mobilenetv2_075", 1, "1g3_OppE5jXW5eO7jy2vbw9mfVqNz-_Tk", 72.71),
    ("mobilenetv2_075", 4, "1bGloR4WUAsGEQpbmqLO-hShIcoV0ut42", 74.01),
    ("mobilenetv2_100", 1, "1Du_AH_pvtFE8ABg_FLjtPccVypw5AajU", 74.74),
    ("mobilenetv2_100", 4, "1HfwoBWOGsiiuhoOyetoQeJ8iXrCi5lJv", 75.29),
    ("mobilenetv2_100", 4, "1p_gqy6xIquEZtu1TEuWKid-0gD2Jv2Z4", None),
)
"""Networks of ODConv: name, number of experts, file on Google Drive, accuracy on ImageNet's
validation set in percent (None for the backbone of a Mask R-CNN)."""


def tables() -> str:
    """The registry in Markdown, as in ``docs/models.md``."""
    lines = [
        "| model | configuration | box AP | mask AP | from | licence |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{m.name}` | `{m.config}` | {m.box_ap} | {m.mask_ap} | {m.project} | {m.licence} |"
            for m in MODELS.values()
        ),
        "",
        "| backbone | experts | ImageNet top-1 | file |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {experts} | {top1 or 'of Mask R-CNN'} | [page]({DRIVE}/{key}/view) |"
            for name, experts, key, top1 in BACKBONES
        ),
    ]
    return "\n".join(lines) + "\n"
