"""Attention rollout: what a position of the last map attends to through all layers (arXiv:2005.00928, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from zoo.errors import ConfigError
from zoo.explain.watch import Watched, check_point, chosen_branches, unpool, watch, weights
from zoo.kernels.sizes import pad_map
from zoo.models.load import backbone_of
from zoo.vision.images import as_input


@dataclass(frozen=True)
class Rollout:
    """What the pixel `point`, (x, y), of `image` attends to through all layers.

    Attributes:
        weights: (H, W), float32, not negative; they sum to one.
        stride: pixels per position.
    """

    image: Image.Image
    point: tuple[int, int]
    weights: torch.Tensor
    stride: int


@torch.inference_mode(False)
def rollout(model: nn.Module, image: Image.Image, point: tuple[int, int] | None = None) -> Rollout:
    """Attention rolled out from the last layer to the first: r = (r + A^T r) / 2 in each, A the mean over its heads.

    Products of A^T with a map are computed as gradients of the reference operations, so no matrix of all pairs is
    needed. From one stage to the previous one, the weight of a position is spread evenly over the positions that it
    covers; the same holds for pooled keys. Convolutions, feed-forward parts and channel attention are treated as the
    identity. The weight of padded keys outside the map is dropped and the rest scaled to one. The model is restored as
    by `explain`.

    Args:
        model: made by `zoo.create_model`, in any wrapper.
        image: an RGB picture of any size; it is not resized.
        point: (x, y) in pixels; the centre when None.

    Raises:
        ConfigError: if `model` is not from the zoo, or has no attention.
        ValueError: if the point lies outside the picture.
    """
    backbone, point = backbone_of(model), check_point(image, point)
    layers = watch(backbone, as_input(backbone, image), chosen_branches(backbone, None))
    if not layers:
        raise ConfigError(f"{backbone.config.name} has no attention to roll out")
    reached = torch.zeros(layers[-1].shape, device=layers[-1].calls[0].arguments["q"].device)
    reached[layers[-1].position(point)] = 1
    for layer in reversed(layers):
        if reached.shape != layer.shape:
            reached = unpool(reached, layer.shape)
        reached = (reached + _attended(layer, reached)) / 2
    return Rollout(image, point, reached.cpu(), layers[0].stride)


def _attended(layer: Watched, queries: torch.Tensor) -> torch.Tensor:
    """A^T queries on the map of a layer, scaled to the sum of `queries`."""
    found = torch.zeros_like(queries)
    for call in layer.calls:
        if call.name == "channel_attention":
            return queries
        q, extra = call.arguments["q"], call.arguments.get("extra")
        heads, extended = q.shape[3], (q.shape[1], q.shape[2])
        asked = pad_map(queries[None], *extended).expand(heads, -1, -1)
        parts = weights(call, asked, **({} if extra is None else {"extra": torch.zeros_like(extra)}))
        for part in parts.values():
            keys = unpool(part.float().sum(0), extended)
            found += keys[: queries.shape[0], : queries.shape[1]]
    return found * (queries.sum() / found.sum())
