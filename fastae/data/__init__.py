"""The data path: folders of JPEGs to augmented batches. Knows nothing of training."""

from fastae.data.crop_resize import CropResize
from fastae.data.loader import load_images, open_loader
from fastae.data.tuning import Tuning

__all__ = ["CropResize", "Tuning", "load_images", "open_loader"]
