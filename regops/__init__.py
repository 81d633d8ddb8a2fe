"""Fused CPU and CUDA kernels for regularization in PyTorch."""

__version__ = "0.1.0"
