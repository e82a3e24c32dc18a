"""Shared elements of all explanation pictures: the pale photograph, patches on it, marks, colour bars, the sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

MARK = "#e6194b"
PANEL = 2.9
"""Width of a panel in inches."""

Draw = Callable[[Axes], None]


def pale_photo(axis: Axes, image: Image.Image) -> None:
    """Draw the picture pale and in grey, so that what is drawn on it stands out."""
    grey = np.asarray(image.convert("L")) / 255
    axis.imshow(0.45 + 0.55 * grey, cmap="gray", vmin=0, vmax=1, extent=(0, image.width, image.height, 0))
    axis.set_xlim(0, image.width)
    axis.set_ylim(image.height, 0)
    axis.set_xticks([])
    axis.set_yticks([])


def patches(
    axis: Axes, values: np.ndarray, stride: tuple[float, float], norm: Normalize, colours: str = "viridis"
) -> AxesImage:
    """Draw each value as a patch on the picture; patches may extend beyond it."""
    bounds = axis.get_xlim(), axis.get_ylim()
    extent = (0, values.shape[1] * stride[1], values.shape[0] * stride[0], 0)
    drawn = axis.imshow(values, cmap=colours, norm=norm, alpha=0.8, extent=extent, interpolation="nearest")
    axis.set(xlim=bounds[0], ylim=bounds[1])
    return drawn


def cross(axis: Axes, point: tuple[int, int]) -> None:
    """A mark on the pixel (x, y)."""
    x, y = point[0] + 0.5, point[1] + 0.5
    axis.plot(x, y, "+", color="white", markersize=12, markeredgewidth=3.5)
    axis.plot(x, y, "+", color=MARK, markersize=11, markeredgewidth=1.8)


def inset(axis: Axes, image: Image.Image, extent: Sequence[float], draw_onto: Callable[[Axes], AxesImage]) -> None:
    """Draw the neighbourhood of a few keys, enlarged, in the corner furthest from them."""
    left, right, top, bottom = extent
    side = max(right - left, bottom - top) * 1.25
    if side > 0.3 * min(image.size):
        return
    x, y = (left + right) / 2, (top + bottom) / 2
    height = 0.5
    width = height * image.height / image.width
    corner = (0.02 if x > image.width / 2 else 0.98 - width, 0.02 if y < image.height / 2 else 0.98 - height)
    enlarged = axis.inset_axes((*corner, width, height))
    draw_onto(enlarged)
    enlarged.set(xlim=(x - side / 2, x + side / 2), ylim=(y + side / 2, y - side / 2), facecolor="white")
    axis.indicate_inset_zoom(enlarged, edgecolor="black", alpha=0.9)


def caption(axis: Axes, first: str, second: str) -> None:
    """A title of two lines, the second small."""
    axis.set_title(f"{first}\n", fontsize=9, parse_math=False)
    axis.text(0.5, 1.02, second, transform=axis.transAxes, ha="center", va="bottom", fontsize=6.5, color="0.35")


def colour_bar(axis: Axes, drawn: AxesImage, label: str) -> None:
    """Draw a colour bar next to the axis with its minimum and maximum."""
    low, high = drawn.get_clim()
    bar = axis.figure.colorbar(drawn, cax=axis.inset_axes((1.02, 0, 0.035, 1)), ticks=[low, high])
    bar.ax.set_yticklabels(told_apart([low, high]), fontsize=6.5)
    bar.set_label(label, fontsize=6.5, labelpad=-6)


def told_apart(values: Sequence[float]) -> list[str]:
    """Numbers with as many decimals as are needed to tell them apart."""
    apart = max(values) - min(values) or abs(values[0]) or 1
    decimals = min(max(2 - math.floor(math.log10(apart)), 0), 6)
    return [f"{value:.{decimals}f}" for value in values]


def save_sheet(
    image: Image.Image,
    point: tuple[int, int] | None,
    columns: Sequence[Sequence[Draw]],
    path: str | PathLike[str],
    title: str,
) -> Path:
    """Save the picture in colour on the left, followed by the columns of panels."""
    rows = max(len(column) for column in columns)
    height = PANEL * image.height / image.width + 0.5
    photo_width = 1 if rows == 1 else 1.4
    figure = Figure(figsize=((PANEL + 0.45) * (len(columns) + photo_width), height * rows + 0.4), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a $ in a name is a $
    grid = figure.add_gridspec(rows, len(columns) + 1, width_ratios=[photo_width] + [1] * len(columns))
    photo = figure.add_subplot(grid[:, 0])
    photo.imshow(image)
    photo.set_axis_off()
    caption(
        photo, "" if point is None else f"the pixel {point[0]},{point[1]}", f"{image.width} x {image.height} pixels"
    )
    if point is not None:
        cross(photo, point)
    for i, column in enumerate(columns):
        for j, draw in enumerate(column):
            draw(figure.add_subplot(grid[j, i + 1]))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
