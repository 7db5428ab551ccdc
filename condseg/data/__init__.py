"""From COCO-format files to batches: images, coco, transforms, collate, sampler, datamodule.

Nothing is imported here, so that a worker started afresh loads only what it needs.
"""
