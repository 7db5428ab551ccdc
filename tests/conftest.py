"""Shapes and types are checked in every test: jaxtyping's annotations, enforced by beartype.

One thread, also in what tests start: sums are then the same to the last digit in every process.
"""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook("condseg", "beartype.beartype")
# In the background of a shell SIGINT is ignored, by nohup SIGHUP, in this process and in those that
# it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
