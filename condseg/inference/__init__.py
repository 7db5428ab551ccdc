"""A trained model on images: prediction, evaluation, drawing."""

from typing import Literal

SCORE_THRESHOLD = 0.4
"""Min score of the instances that are shown, unless another is given."""

ColorBy = Literal["class", "instance", "track"]
"""What has a color of its own in drawings: a class, the same in all images; an instance, which
differs from its neighbours whatever their class; or a track, the object in all frames of a video.
"""

Format = Literal["coco", "coco-results", "labelme", "labelstudio"]
"""Files of annotations: a data set or results of COCO, LabelMe's, Label Studio's."""

Outline = Literal["polygon", "rle"]
"""How annotations describe masks, where their format leaves the choice."""
