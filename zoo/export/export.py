"""Models as files for other runtimes: ONNX, OpenVINO, PyTorch's programs, libraries compiled ahead of time."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
from zoo.files import move_together
from zoo.kernels.per_size import one_program
from zoo.models.build import FeaturePyramid
from zoo.models.edit import fuse
from zoo.models.load import backbone_of
from zoo.nn.backbone import Backbone


@dataclass(frozen=True)
class Exported:
    """A model in a file, which maps `images` (B, C, H, W) to named outputs.

    Attributes:
        path: the file.
        format: "onnx", "openvino", "torch-export" or "aot".
        channels, size: of the images used for the export; size is (height, width).
        bytes: size on disk, including separate weights: of OpenVINO, and of an ONNX file of more than 2 GB.
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
        with one_program():
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
    calibration: Sequence[torch.Tensor] | None = None,
) -> Exported:
    """Write a model for another runtime, in evaluation mode, with folded batch norms and only PyTorch's own operators.

    Args:
        model: from `zoo.create_model`, a classifier or with `features_only=True`.
        path: the file; ".onnx" is usual for ONNX, OpenVINO's must end in ".xml" (its weights get the same name with
            ".bin"), the others in ".pt2".
        format: "onnx" (for ONNX Runtime, TensorRT ...), "openvino", "torch-export" (for `torch.export.load`) or "aot"
            (a library for the local machine, for `torch._inductor.aoti_load_package`).
        size: (height, width), or one side of a square; None for the variant's own.
        dynamic: whether batch, height and width may differ from call to call. If not, the batch is one image.
        calibration: images (B, C, H, W), normalised as the weights require, as from `zoo.vision.read_inputs`. With
            them, an OpenVINO file computes in int8, in the ranges of values that the model has on these images.

    Raises:
        ExportError: if the format is unknown or not one for calibration, a required package is missing, the images are
            too small or calibration images have another shape, or the file would replace weights of something else.
        ConfigError: if this is not a model of the zoo, or for a wrong size.
        OSError: if the file cannot be written; one that it was to replace is still there.
    """
    path = Path(path)
    _check_target(path, format)
    write = FORMATS[format].write
    if calibration is not None:
        if format != "openvino":
            raise ExportError(f"calibration images make int8 files of format openvino, but the format is {format}")
        write = partial(write, calibration=calibration)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program, least = capture(model, size, dynamic)
        if calibration is not None:
            _check_calibration(calibration, program.example_inputs[0][0].shape, least)
        write(program, Path(folder) / path.name, least)
        files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        size_on_disk = sum(file.stat().st_size for file in files)
        move_together(files, path.parent)
    _, channels, *shape = program.example_inputs[0][0].shape
    return Exported(path, format, channels, tuple(shape), size_on_disk, tuple(output_names(program)), least)


def _check_target(path: Path, format: str) -> None:
    if format not in FORMATS:
        raise Where("format").unknown(format, FORMATS, "format")
    suffix, beside = FORMATS[format].suffix, FORMATS[format].beside
    if not path.name.endswith(suffix):
        raise ExportError(f"{path}: the name of a file of format {format} ends in {suffix}")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")
    if beside and (weights := path.with_suffix(beside)).exists() and not path.exists():
        raise ExportError(f"{weights}: exists without {path.name}, whose weights would replace it; take another name")


def _check_calibration(calibration: Sequence[torch.Tensor], example: Sequence[int], least: dict[str, int]) -> None:
    if not calibration:
        raise ExportError("calibration: no images, expected at least one")
    lowest = {AXES[name]: length for name, length in least.items()}
    wanted = ", ".join(f">= {lowest[axis]}" if axis in lowest else str(length) for axis, length in enumerate(example))
    for i, images in enumerate(calibration):
        fits = images.ndim == len(example) and all(
            found >= lowest[axis] if axis in lowest else found == length
            for axis, (found, length) in enumerate(zip(images.shape, example, strict=True))
        )
        if not fits:
            raise ExportError(f"calibration[{i}]: shape {tuple(images.shape)}, expected ({wanted})")


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
    height, width = input_size(backbone, size)
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


def input_size(model: nn.Module, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width in pixels: of the variant, unless a size, or one side of a square, is given.

    Raises:
        ConfigError: if this is not a model of the zoo, or for a wrong size.
    """
    return backbone_of(model).config.img_size if size is None else check(size, Size, Where("size"))


def min_side(backbone: Backbone) -> int:
    """The image side, in pixels, from which every map has two positions per side and the same rules apply."""
    least = 1
    for stage, reduction in zip(backbone.stages, backbone.reductions, strict=False):
        positions = max(2, *(getattr(module, "min_side", 1) for module in stage.modules()))
        least = max(least, positions * reduction)
    return least
