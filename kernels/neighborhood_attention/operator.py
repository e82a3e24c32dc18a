"""Neighborhood attention as a PyTorch operator."""

from zoo.kernels.biased_operator import register
from zoo.kernels.neighborhood_attention.reference import neighborhood_attention

forward = register("neighborhood_attention", neighborhood_attention)
