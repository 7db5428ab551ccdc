"""Instance segmentation with conditional, dynamic convolutions."""

__version__ = "0.1.0"
