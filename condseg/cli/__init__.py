"""The command line: one module per command."""

import os

# Before torch is imported. oneDNN caches the kernels that it compiles for each shape; a dynamic
# network on images of several sizes has more than its default of 1024, and compiling them again
# took a fifth of a training step.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
