"""The data path from folders of images to augmented batches. It is independent of training."""

from fastae.data.loaders.crop_resize import CropResize
from fastae.data.loaders.loader import Loader
from fastae.data.loaders.open import load_images, open_loader
from fastae.data.loaders.tuning import Tuning
from fastae.experiment.augment import Augmentation

__all__ = ["Augmentation", "CropResize", "Loader", "Tuning", "load_images", "open_loader"]
