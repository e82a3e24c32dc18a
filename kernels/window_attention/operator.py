"""Window attention as an operator of PyTorch."""

from zoo.kernels.biased_operator import register

forward = register("window_attention")
