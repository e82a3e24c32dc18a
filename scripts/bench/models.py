"""Times whole models against the same models in other code: throughput and peak memory, forward passes and training.

    python scripts/bench models                              # davit_tiny and maxvit_tiny_tf_224, batch 1 and 8
    python scripts/bench models --model davit_base --batch 4 --mode eager --csv benchmarks/models.csv
    python scripts/bench models --model nat_tiny --peer ../published.py --pass forward --pass training
    python scripts/bench models --mode eager --mode optimized --runtime onnxruntime --runtime openvino --threads 1

Peers are timm, where it has a model of the name, and the files given as `--peer`: each defines `create_model(name)`, a
module or None (or any exception) for a name it does not know, and is named by its stem. This allows comparison with
published code that is not part of this repository. All run in one process, in turn, so that changes in the machine's
speed affect them equally; medians are compared. Peak memory is the maximum that one pass holds in tensors at once, in
addition to the model and the images. A training pass is a forward and a backward pass of a cross entropy, without
stochastic depth and optimiser. Below single precision the passes run under autocast. `graphed` is compiled with CUDA
graphs (`mode="reduce-overhead"`). `optimized` is our model by `zoo.optimize`, next to the others as they are.
`--runtime` adds our model as exported to another runtime, for a forward pass on the CPU. `least_ms` is of the fastest
pass, and `product_share` what it reaches of the rate at which the processor multiplies matrices in cache.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import zoo
from bench.measure import Call, append, default_device, laps, peak_memory, product_rate, setting
from bench.runtimes import RUNTIMES

Factory = Callable[[str], nn.Module | None]
TIMM = frozenset(timm.list_models())
"""As timm comes: published code registers its own models there when it is imported."""


def main(
    model: Annotated[list[str], typer.Option(help="Variants of the zoo.")] = ["davit_tiny", "maxvit_tiny_tf_224"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8],  # noqa: B006
    mode: Annotated[list[str], typer.Option(help="eager, compiled, graphed, optimized")] = ["eager", "compiled"],  # noqa: B006
    passes: Annotated[list[str], typer.Option("--pass", help="forward, training")] = ["forward"],  # noqa: B006
    size: Annotated[list[str], typer.Option(help="Side of square images, or HEIGHTxWIDTH.")] = ["224"],  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="float32, bfloat16, float16")] = ["float32"],  # noqa: B006
    device: Annotated[str, typer.Option(help="cuda or cpu")] = default_device(),
    peer: Annotated[list[Path] | None, typer.Option(help="Python files with `create_model(name)`.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(help="onnxruntime, openvino")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads of the CPU; all if not given.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Timed passes of each model.")] = 20,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Rows are appended.")] = None,
    timm_csv: Annotated[Path | None, typer.Option(help="Forward passes in the columns of timm's benchmark.py.")] = None,
) -> None:
    """Print a table of throughput and peak memory, ours against the others'."""
    factories = {"zoo": own, "timm": from_timm} | {path.stem: from_file(path) for path in peer or ()}
    groups = []
    counts = threads or [torch.get_num_threads()]
    for name, way, kind, images, side, precision, count in product(model, mode, passes, batch, size, dtype, counts):
        torch.set_num_threads(count)
        groups.append(measure(factories, name, way, kind, images, side, precision, device, rounds, runtime or ()))
        if csv_file is not None:
            append(csv_file, groups[-1])
        if timm_csv is not None and kind == "forward":
            append(timm_csv, [as_timm(row) for row in groups[-1]])
    show(groups)


def measure(
    factories: dict[str, Factory],
    name: str,
    mode: str,
    kind: str,
    batch: int,
    size: int | str,
    dtype: str,
    device: str,
    rounds: int,
    runtimes: Sequence[str] = (),
) -> list[dict]:
    """The rows of one model, mode, pass and batch: ours, and those of each peer that has the model and can run it."""
    torch.compiler.reset()
    height, *rest = map(int, str(size).split("x"))
    images = torch.randn(batch, 3, height, *(rest or [height]), device=device)
    calls = {}
    for provider, factory in factories.items():
        call = prepared(factory, name, mode, kind, images, getattr(torch, dtype))
        if call is not None and (provider == "zoo" or works(call, f"{provider}, {name}, {mode}, {kind}")):
            calls[provider] = call
    if kind == "forward" and device == "cpu":
        exported = {runtime: RUNTIMES[runtime](name, images, dtype) for runtime in runtimes}
        calls |= {runtime: call for runtime, call in exported.items() if call is not None}
    times = laps(calls, rounds)
    seconds = {who: statistics.median(own) for who, own in times.items()}
    first_peer = next((provider for provider in calls if provider != "zoo"), "zoo")
    return [
        {
            **setting(device, timm=timm.__version__),
            "model": name,
            "provider": provider,
            "mode": mode,
            "pass": kind,
            "dtype": dtype,
            "batch": batch,
            "size": size,
            "median_ms": round(1e3 * seconds[provider], 2),
            "least_ms": round(1e3 * min(times[provider]), 2),
            "images_per_second": round(batch / seconds[provider], 2),
            "ratio": round(seconds[first_peer] / seconds[provider], 3),
            "product_share": share(name, images, min(times[provider]), dtype, device),
            # A replay of a graph allocates nothing: its memory is reserved beforehand. That of runtimes is not seen.
            "peak_mb": "" if mode == "graphed" or provider in RUNTIMES else round(peak_memory(call, device), 1),
        }
        for provider, call in calls.items()
    ]


def share(name: str, images: torch.Tensor, seconds: float, dtype: str, device: str) -> float | str:
    """Of the rate at which the processor multiplies matrices in cache: what a pass of a model reaches."""
    info = zoo.model_info(name)
    if device != "cpu" or dtype not in ("float32", "bfloat16") or tuple(images.shape[2:]) != info.img_size:
        return ""
    return round(2e9 * info.gmacs * len(images) / seconds / product_rate(dtype, torch.get_num_threads()), 3)


def as_timm(row: dict) -> dict:
    """A row of a forward pass in the columns of timm's results, with what ran it."""
    info = zoo.model_info(row["model"])
    return {
        "model": row["model"],
        "infer_samples_per_sec": row["images_per_second"],
        "infer_step_time": row["median_ms"],
        "infer_batch_size": row["batch"],
        "infer_img_size": row["size"],
        "infer_gmacs": round(info.gmacs, 2),
        "param_count": round(info.params / 1e6, 2),
        "provider": row["provider"],
        "mode": row["mode"],
        "dtype": row["dtype"],
    }


def show(groups: list[list[dict]]) -> None:
    """Print rows, ours next to each peer's."""
    names = (
        "model",
        "batch",
        "size",
        "dtype",
        "threads",
        "mode",
        "pass",
        "peer",
        "zoo img/s",
        "peer img/s",
        "speed",
        "zoo MB",
        "peer MB",
        "memory",
    )
    table = Table(*names)
    for ours, *others in groups:
        start = [str(ours[name]) for name in names[:7]]
        if not others:
            table.add_row(*start, "-", f"{ours['images_per_second']:.1f}", "-", "-", _memory(ours), "-", "-")
        for theirs in others:
            known = ours["peak_mb"] and theirs["peak_mb"]
            table.add_row(
                *start,
                theirs["provider"],
                *(f"{entry['images_per_second']:.1f}" for entry in (ours, theirs)),
                f"{theirs['median_ms'] / ours['median_ms']:.2f}x",
                *map(_memory, (ours, theirs)),
                f"{ours['peak_mb'] / theirs['peak_mb']:.2f}x" if known else "-",
            )
    Console(width=160).print(table)


def _memory(entry: dict) -> str:
    return f"{entry['peak_mb']:.0f}" if entry["peak_mb"] else "-"


def own(name: str) -> nn.Module:
    """Our model."""
    return zoo.create_model(name, drop_path_rate=0.0)


def from_timm(name: str) -> nn.Module | None:
    """Timm's model, if it has one."""
    return timm.create_model(name) if name in TIMM else None


def from_file(path: Path) -> Factory:
    """The `create_model` that a Python file defines; what it raises means that it does not know a name."""
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def create(name: str) -> nn.Module | None:
        try:
            return module.create_model(name)
        except Exception as error:
            warnings.warn(f"{path.stem} gives no {name}: {type(error).__name__}: {error}", stacklevel=2)
            return None

    return create


def prepared(
    factory: Factory, name: str, mode: str, kind: str, images: torch.Tensor, dtype: torch.dtype
) -> Call | None:
    """One pass of a model as a call without arguments; None if there is no such model."""
    torch.manual_seed(0)
    model = factory(name)
    if model is None:
        return None
    model = model.to(images.device).train(kind == "training")
    if mode == "optimized" and factory is own:
        model, dtype = zoo.optimize(model.eval(), dtype=dtype, example=images), torch.float32
    elif mode in ("compiled", "graphed"):
        model = torch.compile(model, dynamic=False, mode="reduce-overhead" if mode == "graphed" else None)
    return partial(train if kind == "training" else infer, model, images, dtype)


@torch.inference_mode()
def infer(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    """A forward pass."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        model(images)


def train(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> None:
    """A forward and a backward pass; the gradients are discarded."""
    labels = torch.arange(len(images), device=images.device)
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)


def works(call: Call, what: str) -> bool:
    """Whether a peer can run at all; if not, it is left out with a warning."""
    try:
        call()
    except Exception as error:  # any failure of other code is ignored
        warnings.warn(f"{what}: left out, {type(error).__name__}: {str(error)[:200]}", stacklevel=2)
        return False
    return True
