"""Models as files for other runtimes: ONNX, PyTorch's exported programs, libraries compiled ahead of time."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental import _config as symbolic
from torch.torch_version import TorchVersion

from zoo.config.schema import Size, check
from zoo.errors import Where
from zoo.export.runtimes import AXES, FORMATS, ExportError, output_names
from zoo.models.build import FeaturePyramid
from zoo.models.edit import fuse
from zoo.models.load import backbone_of
from zoo.nn.backbone import Backbone


@dataclass(frozen=True)
class Exported:
    """A model in a file, which maps `images` (B, C, H, W) to named outputs.

    Attributes:
        path: the file.
        format: "onnx", "torch-export" or "aot".
        channels, size: of the images used for the export; size is (height, width).
        bytes: size on disk, including the separate weights of an ONNX file of more than 2 GB.
        outputs: "logits" ("pooled" without a classifier), or "stride4", "stride8", ... of a feature pyramid, in order.
        least: the dynamic axes and the minimum length of each; there is no maximum. Empty if sizes are fixed.
    """

    path: Path
    format: str
    channels: int
    size: tuple[int, int]
    bytes: int
    outputs: tuple[str, ...]
    least: dict[str, int]


_NEEDLESS = re.compile(r"% 2\) != 0$|^L\['images'\]\.size\(\)\[0\] != 1$")
"""Unnecessary conditions that PyTorch before 2.14 adds to a program because an operator distinguished two cases with
equal results: that a side of the image is odd, that the batch is not one."""


class Named(nn.Module):
    """A classifier or feature pyramid whose outputs have names: a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.model(images)
        if isinstance(out, torch.Tensor):
            return {"logits" if backbone_of(self.model).num_classes else "pooled": out}
        return out if isinstance(out, dict) else dict(zip(self._levels(), out, strict=True))

    def _levels(self) -> list[str]:
        strides = cast(FeaturePyramid, self.model).feature_info.reduction()
        alike = len(set(strides)) < len(strides)
        return [f"stride{stride}_{i}" if alike else f"stride{stride}" for i, stride in enumerate(strides)]


def export(
    model: nn.Module,
    path: str | PathLike[str],
    format: str = "onnx",
    size: int | tuple[int, int] | None = None,
    dynamic: bool = True,
) -> Exported:
    """Write a model for another runtime, in evaluation mode, with folded batch norms and only PyTorch's own operators.

    Args:
        model: from `zoo.create_model`, a classifier or with `features_only=True`.
        path: the file; ".onnx" is usual for ONNX, and the others must end in ".pt2".
        format: "onnx" (for ONNX Runtime, TensorRT, OpenVINO ...), "torch-export" (for `torch.export.load`) or "aot" (a
            library for the local machine, for `torch._inductor.aoti_load_package`).
        size: (height, width), or one side of a square; None for the variant's own.
        dynamic: whether batch, height and width may differ from call to call. If not, the batch is one image.

    Raises:
        ExportError: if the format is unknown, a required package is missing, or the images are too small.
        ConfigError: if this is not a model of the zoo, or for a wrong size.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise Where("format").unknown(format, FORMATS, "format")
    if not path.name.endswith(FORMATS[format].suffix):
        raise ExportError(f"{path}: the name of a file of format {format} ends in {FORMATS[format].suffix}")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program, least = capture(model, size, dynamic)
        FORMATS[format].write(program, Path(folder) / path.name, least)
        files = sorted(Path(folder).iterdir())
        size_on_disk = sum(file.stat().st_size for file in files)
        for file in files:
            os.replace(file, path.parent / file.name)
    _, channels, *shape = program.example_inputs[0][0].shape
    return Exported(path, format, channels, tuple(shape), size_on_disk, tuple(output_names(program)), least)


def capture(
    model: nn.Module, size: int | tuple[int, int] | None = None, dynamic: bool = True
) -> tuple[torch.export.ExportedProgram, dict[str, int]]:
    """The program of `export` in memory, and its dynamic axes with the minimum length of each.

    Raises:
        ExportError: if the images are too small, or PyTorch too old for dynamic sizes.
        ConfigError: if this is not a model of the zoo, or for a wrong size.
    """
    model = Named(fuse(model))
    backbone = backbone_of(model)
    height, width = backbone.config.img_size if size is None else check(size, Size, Where("size"))
    shortest = min_side(backbone)
    if dynamic and min(height, width) < shortest:
        raise ExportError(
            f"the images are {height} x {width} pixels: {backbone.config.name} with dynamic sizes needs at least "
            f"{shortest} a side, smaller ones a program of fixed size"
        )
    if dynamic and not callable(Dim.DYNAMIC):
        raise ExportError(
            f"PyTorch {torch.__version__} makes wrong programs of some models for sizes that it does not know: take a "
            "newer one, or a fixed size, dynamic=False or --static"
        )
    parameter = next(backbone.parameters())
    images = parameter.new_zeros(2 if dynamic else 1, backbone.in_chans, height, width)
    least = {"batch": 1, "height": shortest, "width": shortest} if dynamic else {}
    axes = {AXES[name]: Dim.DYNAMIC(min=low) for name, low in least.items()}
    # Sizes are treated as unknown, so that the program is not specialised to size 1 or to one memory layout.
    with torch.no_grad(), symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # added on import
        program = torch.export.export(model, (images,), dynamic_shapes=(axes,), strict=False)
    if TorchVersion(torch.__version__) < "2.14" and hasattr(program, "_guards_code"):
        program._guards_code = [guard for guard in program._guards_code if not _NEEDLESS.search(guard)]
    return program, least


def min_side(backbone: Backbone) -> int:
    """The image side, in pixels, from which every map has two positions per side and the same rules apply."""
    least = 1
    for stage, reduction in zip(backbone.stages, backbone.reductions, strict=False):
        positions = max(2, *(getattr(module, "min_side", 1) for module in stage.modules()))
        least = max(least, positions * reduction)
    return least
