"""fastae: a 2017 CelebA autoencoder experiment, repeated exactly and as fast as the machine allows."""

__version__ = "0.1.0"
