"""The data path: folders of JPEGs to augmented batches. Knows nothing of training."""

from fastae.data.crop_resize import CropResize
from fastae.data.loader import load_images, open_loader

__all__ = ["CropResize", "load_images", "open_loader"]
