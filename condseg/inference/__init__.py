"""A trained model on images: prediction, evaluation, drawing."""

from typing import Literal

SCORE_THRESHOLD = 0.4
"""Min score of the instances that are shown, unless another is given."""

ColorBy = Literal["class", "instance"]
"""What has a color of its own in drawings: a class, the same in all images, or an instance, which
differs from its neighbours whatever their class."""
