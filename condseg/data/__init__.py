"""From COCO-format files to batches.

Nothing is imported here, so that a module loads only what it needs.
"""
