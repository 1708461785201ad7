"""The loaders make augmented batches from files, on a CPU or a GPU."""
