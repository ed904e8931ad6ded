"""Kernels that earn their place: Triton on the GPU, Numba on the CPU, plain torch as the truth."""
