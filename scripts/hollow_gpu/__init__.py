"""Runs PyTorch's CUDA build without a GPU, to show what would be launched, and what CUDA would refuse.

`shim.c` is a library that is loaded before libcudart and instead of libcuda. It simulates two H100s whose
memory is the host's and whose kernels do nothing. It counts launches, copies and synchronisations, and
refuses some calls during a graph capture, which docs/gpu.md lists. `driver.py` makes Triton compile for sm_90
with its own ptxas, reads registers and spills from the result, and gives cuDNN's and cuBLAS's operators
outputs of the right shape.
fastae's code runs on it unchanged: torch.compile, autograd, fused Adam, CUDA graphs.

It cannot show cuDNN's and cuBLAS's kernels, DALI, NCCL, speed, results or races. It uses private names of
PyTorch 2.13 and Triton 3.7.

    make gpu-lower          its own virtual environment (5 GB), then `python -m scripts.hollow_gpu`
"""
