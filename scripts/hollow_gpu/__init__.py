"""PyTorch's CUDA build on a machine without a GPU: what would be launched, and what CUDA would refuse.

`shim.c` is a library loaded in front of libcudart and in place of libcuda: two H100s whose memory is the
host's and whose kernels do nothing. It counts launches, copies and synchronisations, and refuses during
graph capture what CUDA refuses. `driver.py` has Triton compile for sm_90 with its own ptxas, reads registers
and spills from the result, and gives the operators of cuDNN and cuBLAS outputs of the right shape. The
project's code runs unmodified on it: torch.compile, autograd, fused Adam, CUDA graphs.

It cannot show: cuDNN's and cuBLAS's kernels, DALI, NCCL, speed, results, races. It uses private names of
PyTorch 2.13 and Triton 3.7.

    make gpu-lower          its own virtual environment (5 GB), then `python -m scripts.hollow_gpu`
"""
