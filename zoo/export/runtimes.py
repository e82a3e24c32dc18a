"""The export formats: how each is written, and loaded into its runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

INPUT = "images"
AXES = {"batch": 0, "height": 2, "width": 3}
Run = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class ExportError(ValueError):
    """A model cannot be written in a format or run from it; the message says why and what to do."""


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: required extension of file names; empty for any.
        write: writes a program to a file, given the minimum lengths of its dynamic axes.
        read: loads that file as a function from images to named outputs.
    """

    suffix: str
    write: Callable[[ExportedProgram, Path, dict[str, int]], None]
    read: Callable[[Path], Run]


def output_names(program: ExportedProgram) -> list[str]:
    """Names of the outputs of a program that returns a dictionary, in order."""
    return list(program.call_spec.out_spec.context)


def _write_onnx(program: ExportedProgram, path: Path, least: dict[str, int]) -> None:
    with _export_extra(), _quiet():
        import onnxscript  # noqa: F401 - required by torch.onnx

        axes = {AXES[name]: name for name in least}
        written = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=output_names(program),
            dynamic_shapes={INPUT: axes} if axes else None,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
        assert written is not None
        written.model.metadata_props.update({f"least_{name}": str(length) for name, length in least.items()})
        written.save(path)


def _stable_sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """TopK over all elements: in ONNX the first of equal numbers wins."""
    from onnxscript import opset20

    op: Any = opset20  # its type annotations do not allow lists of numbers
    return op.TopK(x, op.Gather(op.Shape(x), [dim]), axis=dim, largest=int(descending))


def _read_onnx(path: Path) -> Run:
    with _export_extra():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = session.run(names, {INPUT: images.cpu().numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return run


def _write_program(program: ExportedProgram, path: Path, least: dict[str, int]) -> None:
    torch.export.save(program, path)


def _read_program(path: Path) -> Run:
    return torch.export.load(path).module()


def _write_library(program: ExportedProgram, path: Path, least: dict[str, int]) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path))
    except InvalidCxxCompiler as error:
        raise ExportError("format aot compiles C++, and there is no compiler: install one or name it in CXX") from error


def _read_library(path: Path) -> Run:
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path))


@contextmanager
def _export_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"ONNX needs {error.name}, which is not installed: pip install 'vision-zoo[export]'"
        raise ExportError(message) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about constants that it does not fold."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


FORMATS = {
    "onnx": Format("", _write_onnx, _read_onnx),
    "torch-export": Format(".pt2", _write_program, _read_program),
    "aot": Format(".pt2", _write_library, _read_library),
}
