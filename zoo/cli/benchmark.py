"""`zoo benchmark`: how fast models are on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zoo.cli.output import check_output, show
from zoo.errors import ConfigError
from zoo.files import write_json

PRECISIONS: dict[str, str | None] = {"no": None, "bf16": "bfloat16", "fp16": "float16"}


def benchmark(
    models: Annotated[list[str], typer.Argument(help="Variants, FILE.yaml or checkpoints of zoo train.")],
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images at once.")] = 8,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images; the model's own if not given.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Also forward and backward pass in training mode.")] = False,
    amp: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.")] = None,
) -> None:
    """Images per second of models on the GPU, or on the CPU where there is none: as they are and by `zoo.optimize`."""
    import torch

    from zoo import create_model, optimize
    from zoo.models.load import backbone_of
    from zoo.models.optimize import why_no
    from zoo.vision import measure_speed

    if amp not in PRECISIONS:
        raise ConfigError(f"--amp is {amp!r}, expected one of {', '.join(PRECISIONS)}")
    if output:
        check_output(output)
    name_of_type = PRECISIONS[amp]
    precision = getattr(torch, name_of_type) if name_of_type else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    optimizes = not compile and not why_no(precision or torch.float32, device)
    columns = ("model", "size", "images/s", "optimized images/s", "training images/s", "GiB")
    table = Table(*columns, title=f"{device}, batch {batch_size}")
    rows = []
    for name in models:
        model = create_model(name).to(device)
        size = (img_size, img_size) if img_size else backbone_of(model).config.img_size
        if compile:
            model.compile()
        found, optimized = measure_speed(model, batch_size, size, train, precision), None
        if optimizes:
            example = torch.zeros(batch_size, backbone_of(model).in_chans, *size)
            packed = optimize(model.eval(), dtype=precision or torch.float32, example=example)
            optimized = measure_speed(packed, batch_size, size).forward
        about = {"model": name, "device": device, "amp": amp, "compiled": compile}
        rows.append({**about, **asdict(found), "optimized": optimized})
        cells = (found.forward, optimized, found.training, found.gigabytes)
        table.add_row(name, f"{size[0]} x {size[1]}", *("" if n is None else f"{n:.4g}" for n in cells))
    show(table)
    if output:
        write_json(output, rows)
