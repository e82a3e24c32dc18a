"""What a pixel attends to: the weights of every attention layer for one position of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from zoo.explain.watch import Watched, attention_layers, check_point, weights
from zoo.kernels import region_scores
from zoo.kernels.channel_attention.reference import channel_attention
from zoo.kernels.checks import as_pair
from zoo.kernels.recording import Call
from zoo.kernels.sizes import ceil_div
from zoo.models.load import backbone_of
from zoo.vision.images import as_input


@dataclass(frozen=True)
class Region:
    """A region of BiFormer that the query's region is routed to.

    Attributes:
        box: (top, left, bottom, right) in key positions.
        score: the product of the mean query of the query's region and the mean key of this one, over all heads.
    """

    box: tuple[int, int, int, int]
    score: float


@dataclass(frozen=True)
class Part:
    """What the query attends to on one map of keys.

    Attributes:
        name: "window", "grid", "neighborhood", "regions", "pooled", ...
        detail: size, interval or dilation, in words.
        weights: (heads, h, w), float32. They sum to one over the `in_softmax` parts of a head.
        stride: (vertical, horizontal) pixels per key position.
        inside: (rows, columns) of keys on the map; the others are zeros with which the mixer pads it.
        in_softmax: False for TransNeXt's learned weights, of either sign, which are added after the softmax.
        regions: BiFormer's routed regions, the best first.
    """

    name: str
    detail: str
    weights: torch.Tensor
    stride: tuple[float, float]
    inside: tuple[int, int]
    in_softmax: bool = True
    regions: tuple[Region, ...] = ()

    @property
    def share(self) -> float:
        """The sum of the weights, mean over the heads."""
        return self.weights.sum((1, 2)).mean().item()

    @property
    def beyond(self) -> float:
        """The weight of the keys outside the map, mean over the heads."""
        rows, columns = self.inside
        return (self.weights[:, rows:].sum() + self.weights[:, :rows, columns:].sum()).item() / len(self.weights)


@dataclass(frozen=True)
class Channels:
    """DaViT's channel attention: which channels of a group each channel attends to; all positions share the weights.

    Attributes:
        weights: (groups, channels, channels), float32; row i holds the weights of the input channels for output channel
            i and sums to one.
        strength: (groups,) length of the group's output at the query, in units of its root mean square over the map.
        likeness: (groups, H, W) cosine between the group's output at each position and at the query, -1 to 1.
    """

    weights: torch.Tensor
    strength: torch.Tensor
    likeness: torch.Tensor
    name: str = "channels"

    @property
    def strongest(self) -> int:
        """The group with the greatest strength."""
        return int(self.strength.argmax())


@dataclass(frozen=True)
class Layer:
    """What the query attends to in one layer.

    Attributes:
        name: as in "stages.2.blocks.4.attn".
        mixer: the type of the layer in configurations.
        stride: pixels of the picture per position.
        shape: (height, width) of the layer's map.
        query: (row, column) of the position that covers the point.
    """

    name: str
    mixer: str
    stride: int
    shape: tuple[int, int]
    query: tuple[int, int]
    parts: tuple[Part | Channels, ...]


@dataclass(frozen=True)
class Explanation:
    """What the pixel `point`, (x, y), of `image` attends to in each layer, first to last."""

    image: Image.Image
    point: tuple[int, int]
    layers: tuple[Layer, ...]


@torch.inference_mode(False)
def explain(
    model: nn.Module, image: Image.Image, point: tuple[int, int] | None = None, layer: int | str | None = None
) -> Explanation:
    """The attention weights of one pixel, recomputed from the layers' inputs by the reference operations.

    The model runs once, with its fast kernels and in evaluation mode; modes, gradients, buffers and hooks are restored.

    Args:
        model: made by `zoo.create_model`, in any wrapper; images are normalised as its weights require.
        image: an RGB picture of any size; it is not resized.
        point: (x, y) in pixels; the centre when None.
        layer: "stages.2.blocks.4.attn", a module above layers ("stages.2.blocks.4"), a stage (2), or None for all.

    Raises:
        ConfigError: if `model` is not from the zoo, or `layer` matches nothing, or nothing with attention.
        ValueError: if the point lies outside the picture.
    """
    backbone, point = backbone_of(model), check_point(image, point)
    seen = attention_layers(backbone, as_input(backbone, image), layer)
    return Explanation(image, point, tuple(_layer(watched, point) for watched in seen))


def _layer(watched: Watched, point: tuple[int, int]) -> Layer:
    query = watched.position(point)
    parts = [part for call in watched.calls for part in _parts(watched, call, query)]
    return Layer(watched.name, watched.mixer, watched.stride, watched.shape, query, tuple(parts))


def _parts(watched: Watched, call: Call, query: tuple[int, int]) -> Sequence[Part | Channels]:
    if call.name == "channel_attention":
        return [_channels(call, query)]
    if call.name == "aggregated_attention":
        return _aggregated(watched, call, query)
    found = weights(call, _one_hot(call, query))["v"]
    regions = _regions(call, query) if call.name == "routing_attention" else ()
    return [_part(watched, call, *_described(watched, call), found, regions=regions)]


def _part(watched: Watched, call: Call, name: str, detail: str, found: torch.Tensor, **more: Any) -> Part:
    """The weights `found` with the location of their keys: the map of the queries or a pooled one."""
    (height, width), (down, right) = call.arguments["q"].shape[1:3], watched.shape
    rows, columns = found.shape[1:]
    stride = (watched.stride * height / rows, watched.stride * width / columns)
    inside = (ceil_div(down * rows, height), ceil_div(right * columns, width))
    return Part(name, detail, found.float().cpu(), stride, inside, **more)


def _aggregated(watched: Watched, call: Call, query: tuple[int, int]) -> list[Part]:
    """The softmax over window and pooled map, and the weights added to the window after it."""
    one, extra = _one_hot(call, query), call.arguments["extra"]
    softmax = weights(call, one, extra=torch.zeros_like(extra))
    added = weights(call, one)["v"] - softmax["v"]
    local, size = softmax["v"], call.arguments["size"]
    pooled = softmax["pooled_v"]
    return [
        _part(watched, call, "local", f"{size} x {size}", local),
        _part(watched, call, "pooled", f"{pooled.shape[1]} x {pooled.shape[2]} map", pooled),
        _part(watched, call, "added", "learned, outside the softmax", added, in_softmax=False),
    ]


def _channels(call: Call, query: tuple[int, int]) -> Channels:
    """The weights are the outputs for unit vectors in place of the queries, which here carry the content."""
    q, k, v = (call.arguments[name].detach().float() for name in ("q", "k", "v"))
    groups, width = q.shape[3:]
    units = torch.eye(width, device=q.device).view(1, 1, width, 1, width).expand(-1, -1, -1, groups, -1)
    columns, out = (channel_attention(given, k, v, call.arguments["scale"])[0] for given in (units, q))
    own = out[query]  # (groups, channels)
    strength = own.norm(dim=1) / out.square().sum(-1).mean((0, 1)).sqrt().clamp_min(1e-12)
    likeness = F.cosine_similarity(out, own, dim=-1).permute(2, 0, 1)
    return Channels(columns[0].permute(1, 2, 0).cpu(), strength.cpu(), likeness.cpu())


def _one_hot(call: Call, query: tuple[int, int]) -> torch.Tensor:
    """(heads, H, W): one at the query."""
    q = call.arguments["q"]
    one = torch.zeros(q.shape[3], *q.shape[1:3], device=q.device)
    one[:, query[0], query[1]] = 1
    return one


def _regions(call: Call, query: tuple[int, int]) -> tuple[Region, ...]:
    q, k, routes = (call.arguments[name] for name in ("q", "k", "routes"))
    (h, w), columns = (region := as_pair(call.arguments["region"], "region")), ceil_div(q.shape[2], region[1])
    own = query[0] // h * columns + query[1] // w
    scores = region_scores(q, k, region)[0, own]
    corners = [(index // columns * h, index % columns * w, scores[index].item()) for index in routes[0, own].tolist()]
    return tuple(Region((top, left, top + h, left + w), score) for top, left, score in corners)


def _described(watched: Watched, call: Call) -> tuple[str, str]:
    """Name and detail of the keys of one operation."""
    given = call.arguments
    if call.name == "neighborhood_attention":
        size, dilation = (as_pair(given[key], key) for key in ("size", "dilation"))
        return "neighborhood", _by(size) + ("" if dilation == (1, 1) else f", dilation {_pair(dilation)}")
    if call.name == "routing_attention":
        return "regions", f"{given['routes'].shape[2]} of {_by(as_pair(given['region'], 'region'))}"
    if call.name == "global_attention":
        return _label(watched, call) or "global", f"{_by(given['k'].shape[1:3])} map"
    size, interval = (as_pair(given[key], key) for key in ("size", "interval"))
    detail = _by(size) + ("" if interval == (1, 1) else f", every {_pair(interval)}")
    return _label(watched, call) or "window", detail


def _label(watched: Watched, call: Call) -> str | None:
    """The layer's name for the keys of one of its operations, if it gives one."""
    return getattr(watched.module, "labels", {}).get(call.name)


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]} x {pair[1]}"


def _pair(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _by(pair)
