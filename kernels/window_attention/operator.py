"""Window attention as a PyTorch operator."""

from zoo.kernels.biased_operator import register
from zoo.kernels.window_attention.reference import window_attention

forward = register("window_attention", window_attention)
