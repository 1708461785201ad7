"""Loaders: from files to augmented batches, on a CPU or a GPU."""
