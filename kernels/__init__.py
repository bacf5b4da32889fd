"""Triton kernels: device code and its launch functions. Nothing here knows of autograd, dispatch or benchmarks."""
