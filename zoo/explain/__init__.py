"""Explains a model's outputs: attention, rollout, class maps and receptive fields, and pictures of them."""

from zoo.explain.attention import Channels, Explanation, Layer, Part, Region, explain
from zoo.explain.pictures import save_attention, save_class_map, save_receptive_fields, save_rollout
from zoo.explain.rollout import Rollout, rollout
from zoo.explain.saliency import ClassMap, ReceptiveField, grad_cam, receptive_field

__all__ = [
    "Channels",
    "ClassMap",
    "Explanation",
    "Layer",
    "Part",
    "ReceptiveField",
    "Region",
    "Rollout",
    "explain",
    "grad_cam",
    "receptive_field",
    "rollout",
    "save_attention",
    "save_class_map",
    "save_receptive_fields",
    "save_rollout",
]
