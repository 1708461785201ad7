"""The data path: folders of JPEGs to augmented batches. Knows nothing of training."""

from fastae.augment import Augmentation
from fastae.data.crop_resize import CropResize
from fastae.data.loader import Loader, load_images, open_loader
from fastae.data.tuning import Tuning

__all__ = ["Augmentation", "CropResize", "Loader", "Tuning", "load_images", "open_loader"]
