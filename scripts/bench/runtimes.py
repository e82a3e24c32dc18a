"""Our models as other runtimes run them on the CPU: exported once, for images of one shape."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

import zoo
from bench.measure import Call
from zoo.export import export
from zoo.export.runtimes import FORMATS


@cache
def exported(name: str) -> Path:
    """The ONNX file of a model, for any batch and size."""
    path = Path(tempfile.mkdtemp(prefix="zoo-bench-")) / f"{name}.onnx"
    export(zoo.create_model(name).eval(), path)
    return path


def onnx_runtime(name: str, images: torch.Tensor, dtype: str) -> Call | None:
    """A forward pass in ONNX Runtime, which has float32 alone for the CPU."""
    if dtype != "float32":
        return None
    return partial(FORMATS["onnx"].read(exported(name)), images)


def openvino(name: str, images: torch.Tensor, dtype: str) -> Call | None:
    """A forward pass in OpenVINO."""
    if dtype not in HINTS:
        return None
    import openvino

    core = openvino.Core()
    model = core.read_model(exported(name))
    model.reshape(list(images.shape))
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": HINTS[dtype],
    }
    return partial(core.compile_model(model, "CPU", settings), [images.numpy()])


HINTS = {"float32": "f32", "bfloat16": "bf16"}
RUNTIMES: dict[str, Callable[[str, torch.Tensor, str], Call | None]] = {
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}
