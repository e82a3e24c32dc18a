"""The export formats: how each is written, and loaded into its runtime."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
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
        beside: extension of a second file that belongs to the first; empty for none.
    """

    suffix: str
    write: Callable[..., None]
    read: Callable[[Path], Run]
    beside: str = ""


def output_names(program: ExportedProgram) -> list[str]:
    """Names of the outputs of a program that returns a dictionary, in order."""
    return list(program.call_spec.out_spec.context)


def _write_onnx(program: ExportedProgram, path: Path, least: dict[str, int]) -> None:
    with _extra("ONNX", "export"), _quiet("onnxscript"):
        import onnxscript  # noqa: F401 - required by torch.onnx

        axes = {AXES[name]: name for name in least}
        written = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=output_names(program),
            dynamic_shapes={INPUT: axes} if axes else None,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
            optimize=False,  # it takes time quadratic in the number of nodes
        )
        assert written is not None
        _simplify(written.model)
        written.model.metadata_props.update({f"least_{name}": str(length) for name, length in least.items()})
        written.save(path)


def _simplify(model: Any) -> None:
    """Compute what layers share once, and fold constants. Fusing operators is left to the runtimes."""
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants_ir

    common.CommonSubexpressionEliminationPass()(model)
    fold_constants_ir(model)
    Sequential(common.RemoveUnusedNodesPass(), common.OutputFixPass(), common.NameFixPass())(model)


def _stable_sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """TopK over all elements: in ONNX the first of equal numbers wins."""
    from onnxscript import opset20

    op: Any = opset20  # its type annotations do not allow lists of numbers
    return op.TopK(x, op.Gather(op.Shape(x), [dim]), axis=dim, largest=int(descending))


def _read_onnx(path: Path) -> Run:
    with _extra("ONNX", "export"):
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


def _write_openvino(
    program: ExportedProgram, path: Path, least: dict[str, int], calibration: Sequence[torch.Tensor] = ()
) -> None:
    """Write the network and, beside it, its weights; in int8, if there are images to calibrate it with."""
    with _extra("OpenVINO", "openvino"):
        import openvino

        if calibration:
            import nncf  # noqa: F401 - a missing one is reported before the conversion
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # By way of ONNX: OpenVINO cannot convert `sym_max`, which programs of dynamic sizes call.
        onnx = Path(folder) / "model.onnx"
        _write_onnx(program, onnx, least)
        model = openvino.convert_model(onnx)
        if least:
            shape = model.input(INPUT).partial_shape
            for name, length in least.items():
                shape[AXES[name]] = openvino.Dimension(length, -1)
            model.reshape({INPUT: shape})  # OpenVINO checks the minimum lengths
        if calibration:
            model = _in_int8(model, calibration)
        openvino.save_model(model, path, compress_to_fp16=False)


def _in_int8(model: Any, calibration: Sequence[torch.Tensor]) -> Any:
    """An OpenVINO model with the matrix products and convolutions in int8."""
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    # NNCF takes the second axis for the channels of a depthwise convolution's input; here that may be the height.
    whole = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False)
    )
    images = nncf.Dataset(calibration, lambda image: image.cpu().numpy())
    with _quiet("nncf"), redirect_stdout(sys.stderr):  # progress
        return nncf.quantize(
            model,
            images,
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=whole,
        )


def _read_openvino(path: Path) -> Run:
    with _extra("OpenVINO", "openvino"):
        import openvino
    # Without the hint, float32 becomes bfloat16 on processors that have it.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    names = [output.any_name for output in compiled.outputs]

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = compiled({INPUT: images.cpu().numpy()})
        return {name: torch.from_numpy(outputs[name]) for name in names}

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
def _extra(what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{what} needs {error.name}, which is not installed: pip install 'vision-zoo[{extra}]'"
        raise ExportError(message) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a converter's messages, such as those about constants that it does not fold."""
    logger = logging.getLogger(name)
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
    "openvino": Format(".xml", _write_openvino, _read_openvino, beside=".bin"),
    "torch-export": Format(".pt2", _write_program, _read_program),
    "aot": Format(".pt2", _write_library, _read_library),
}
