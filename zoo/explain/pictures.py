"""Pictures of what a pixel attends to."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

from zoo.explain.attention import Channels, Explanation, Layer, Part
from zoo.explain.rollout import Rollout
from zoo.explain.saliency import ClassMap, ReceptiveField
from zoo.explain.sheet import MARK, Draw, caption, colour_bar, cross, inset, pale_photo, patches, save_sheet, told_apart

COLUMNS = 4
DIVERGING = "PuOr"


def save_attention(
    explanation: Explanation, path: str | PathLike[str], title: str, head: int | None = None, every: bool = False
) -> Path:
    """Draw the keys that the query attends to at their positions in the picture and save it as PNG, PDF or SVG.

    Args:
        explanation: from `explain`.
        path: output file; folders are created.
        title: text above the picture.
        head: index of the head in every layer, from 0; None for the mean over the heads.
        every: draw all layers; otherwise the first of each kind in each stage, one column per stage.

    Raises:
        ValueError: if a layer to draw has no such head.
    """
    layers = explanation.layers if every else first_of_each_kind(explanation.layers)
    for layer in layers:
        heads = min(len(part.weights) for part in layer.parts)
        if head is not None and not 0 <= head < heads:
            raise ValueError(f"head is {head}, but {layer.name} has heads 0 to {heads - 1}")
    panels = {layer.name: _panels(explanation, layer, head) for layer in layers}
    stages = dict.fromkeys(_stage(layer) for layer in layers)
    columns = [[p for layer in layers if _stage(layer) == stage for p in panels[layer.name]] for stage in stages]
    if every:
        flat = [panel for column in columns for panel in column]
        rows = -(-len(flat) // COLUMNS)
        columns = [flat[i : i + rows] for i in range(0, len(flat), rows)]
    return save_sheet(explanation.image, explanation.point, columns, path, title)


def first_of_each_kind(layers: Sequence[Layer]) -> list[Layer]:
    """In each stage the first layer of each type, size, interval and dilation."""
    kinds: dict[tuple, Layer] = {}
    for layer in layers:
        parts = tuple((part.name, getattr(part, "detail", "")) for part in layer.parts)
        kinds.setdefault((_stage(layer), layer.mixer, parts), layer)
    return list(kinds.values())


def save_rollout(found: Rollout, path: str | PathLike[str], title: str) -> Path:
    """Draw an attention rollout over its picture."""
    heat = found.weights.numpy() * 100

    def draw(axis: Axes) -> None:
        pale_photo(axis, found.image)
        drawn = patches(axis, heat, (found.stride, found.stride), PowerNorm(0.5, heat.min(), heat.max()))
        cross(axis, found.point)
        caption(axis, "attention rollout", f"all layers, {heat.shape[0]} x {heat.shape[1]} positions")
        colour_bar(axis, drawn, "weight of a position, %")

    return save_sheet(found.image, found.point, [[draw]], path, title)


def save_receptive_fields(found: Sequence[ReceptiveField], path: str | PathLike[str], title: str) -> Path:
    """Draw receptive fields of one point over its picture, side by side."""
    columns = [[_receptive_field(field)] for field in found]
    return save_sheet(found[0].image, found[0].point, columns, path, title)


def save_class_map(found: ClassMap, path: str | PathLike[str], title: str) -> Path:
    """Draw Grad-CAM over its picture."""

    def draw(axis: Axes) -> None:
        pale_photo(axis, found.image)
        drawn = patches(axis, found.weights.numpy(), (1, 1), Normalize(0, 1))
        caption(axis, "Grad-CAM", f"class {found.index}: {found.label}")
        colour_bar(axis, drawn, "of the greatest")

    return save_sheet(found.image, None, [[draw]], path, title)


def _stage(layer: Layer) -> str:
    return layer.name.split(".")[1]


def _panels(explanation: Explanation, layer: Layer, head: int | None) -> list[Draw]:
    panels: list[Draw] = []
    for part in layer.parts:
        if isinstance(part, Channels):
            group = part.strongest if head is None else head
            panels += [_matrix(layer, part, group), _likeness(explanation, layer, part, group)]
        else:
            panels.append(_keys(explanation, layer, part, head))
    return panels


def _keys(explanation: Explanation, layer: Layer, part: Part, head: int | None) -> Draw:
    weights = (part.weights.mean(0) if head is None else part.weights[head]).numpy() * 100
    seen = np.ma.masked_array(weights, mask=(weights == 0) & weights.any())
    low, high = (0, seen.max()) if seen.min() == seen.max() else (seen.min(), seen.max())
    norm = Normalize(low, high) if part.in_softmax else Normalize(-abs(seen).max(), abs(seen).max())

    def draw_onto(axis: Axes) -> AxesImage:
        pale_photo(axis, explanation.image)
        drawn = patches(axis, seen, part.stride, norm, "viridis" if part.in_softmax else DIVERGING)
        _cell(axis, layer)
        return drawn

    def draw(axis: Axes) -> None:
        drawn = draw_onto(axis)
        _regions(axis, explanation.image, layer, part)
        if not part.regions and part.stride[0] < min(explanation.image.size) / 20:
            inset(axis, explanation.image, _extent(seen, part.stride), draw_onto)
        name = f"{part.name}, {part.detail}{_share(part, weights)}"
        caption(axis, name, f"{_place(layer)}, {_source(part, weights, head)}")
        colour_bar(axis, drawn, "weight of a key, %")

    return draw


def _share(part: Part, weights: np.ndarray) -> str:
    """This part's share of the weight, if it is not all of it."""
    if not part.in_softmax:
        return f", sum {weights.sum():.0f} %"
    return f": {weights.sum():.0f} % of the weight" if weights.sum() < 99.5 else ""


def _source(part: Part, weights: np.ndarray, head: int | None) -> str:
    """Which heads are drawn, and how much of their weight is outside the map."""
    rows, columns = part.inside
    beyond = weights.sum() - weights[:rows, :columns].sum()
    heads = f"{len(part.weights)} heads" if head is None else f"head {head}"
    return heads + (f", {beyond:.0f} % beyond the map" if beyond > 0.5 else "")


def _matrix(layer: Layer, part: Channels, group: int) -> Draw:
    def draw(axis: Axes) -> None:
        drawn = axis.imshow(part.weights[group].numpy() * 100, cmap="viridis", interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel("input channel", fontsize=7)
        axis.set_ylabel("output channel", fontsize=7)
        caption(axis, f"channels of group {group + 1} of {len(part.weights)}", _place(layer))
        colour_bar(axis, drawn, "weight of a channel, %")

    return draw


def _likeness(explanation: Explanation, layer: Layer, part: Channels, group: int) -> Draw:
    def draw(axis: Axes) -> None:
        pale_photo(axis, explanation.image)
        stride = (layer.stride, layer.stride)
        drawn = patches(axis, part.likeness[group].numpy(), stride, Normalize(-1, 1), DIVERGING)
        _cell(axis, layer)
        caption(axis, f"output of group {group + 1}, likeness to the query's", _place(layer))
        colour_bar(axis, drawn, "cosine")

    return draw


def _receptive_field(field: ReceptiveField) -> Draw:
    relative = (field.gradient / field.gradient.max().clamp_min(1e-30)).numpy()

    def draw(axis: Axes) -> None:
        pale_photo(axis, field.image)
        drawn = patches(axis, np.ma.masked_less(relative, 1e-3), (1, 1), PowerNorm(0.5, 0, 1))
        cross(axis, field.point)
        share = f"{(relative > 0.1).mean():.1%} of the pixels above 0.1, drawn above 0.001"
        caption(axis, f"stage {field.stage}, stride {field.stride}", share)
        colour_bar(axis, drawn, "of the greatest gradient")

    return draw


def _cell(axis: Axes, layer: Layer) -> None:
    (row, column), side = layer.query, layer.stride
    axis.add_patch(Rectangle((column * side, row * side), side, side, fill=False, edgecolor=MARK, linewidth=1))


def _regions(axis: Axes, image: Image.Image, layer: Layer, part: Part) -> None:
    """The region of the query dashed, and the chosen ones with their scores."""
    style = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    few = len(part.regions) <= 4
    scores = told_apart([region.score for region in part.regions]) if part.regions else []
    for region, score in zip(part.regions, scores, strict=True):
        top, left, bottom, right = (n * layer.stride for n in region.box)
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linewidth=0.9))
        if left >= image.width or top >= image.height:
            continue
        x, y = (left + min(right, image.width)) / 2, (top + min(bottom, image.height)) / 2
        if few:  # next to the region, so that its weights stay visible
            y += (bottom - top) * (0.8 if bottom < 0.8 * image.height else -0.8)
        axis.text(x, y, score, ha="center", va="center", fontsize=7 if few else 5, bbox=style)
    for top, left, bottom, right in (region.box for region in part.regions[:1]):
        height, width = (bottom - top) * layer.stride, (right - left) * layer.stride
        corner = layer.query[1] * layer.stride // width * width, layer.query[0] * layer.stride // height * height
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=MARK, linewidth=1, linestyle="--"))


def _extent(seen: np.ma.MaskedArray, stride: tuple[float, float]) -> tuple[float, float, float, float]:
    """(left, right, top, bottom) of the attended keys in pixels."""
    rows, columns = np.nonzero(~np.ma.getmaskarray(seen))
    return (
        columns.min() * stride[1],
        (columns.max() + 1) * stride[1],
        rows.min() * stride[0],
        (rows.max() + 1) * stride[0],
    )


def _place(layer: Layer) -> str:
    return f"{layer.name}, stride {layer.stride}"
