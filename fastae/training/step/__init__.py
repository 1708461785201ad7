"""The training step: objective, backward pass and Adam; compiled, and on a GPU one CUDA graph."""
