"""Shapes and types are checked in every test: jaxtyping's annotations, enforced by beartype."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from jaxtyping import install_import_hook

install_import_hook("condseg", "beartype.beartype")
