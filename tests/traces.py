"""What a model runs, in words: its layers, its calls of kernels, and what its configuration says of them.

`python -m tests.traces NAME ...` writes `traces.json.gz`, one trace a variant, and prints those of NAME. It is run when
a variant is new and its logits equal the published ones, and what it prints is then read beside the published code:
random weights hardly show the eps of a norm or the kind of an activation. Afterwards the file holds the variant to it.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import zoo
from zoo.config.catalog import load_config
from zoo.config.model import BranchConfig, Part
from zoo.kernels.recording import Call, recording
from zoo.nn.backbone import Backbone

PATH = Path(__file__).parent / "traces.json.gz"
Words = list[str]


def _linear(x: Any, w: Any, b: Any = None) -> str:
    return f"linear {w.shape[1]}>{w.shape[0]}" + " without bias" * (b is None)


def _conv(x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> str:
    name = "conv" if groups == 1 else "depthwise" if groups == w.shape[0] else f"conv in {groups} groups"
    sides = [f"{k}/{s}" for k, s in zip(w.shape[2:], stride, strict=True)]
    dilated = "" if set(dilation) == {1} else f" dilated {dilation[0]}"
    channels = f"{w.shape[1] * groups}>{w.shape[0]}"
    return f"{name} {'x'.join(dict.fromkeys(sides))} {channels}{dilated}" + " without bias" * (b is None)


LAYERS: dict[Callable[..., Any], Callable[..., str]] = {
    F.linear: _linear,
    F.conv2d: _conv,
    F.layer_norm: lambda x, *_, eps=1e-5, **__: f"layer norm {eps:g}",
    F.batch_norm: lambda x, *_, eps=1e-5, **__: f"batch norm {eps:g}",
    F.group_norm: lambda x, groups, *_, eps=1e-5, **__: f"group norm in {groups}, {eps:g}",
    F.gelu: lambda x, approximate="none": "gelu" if approximate == "none" else f"gelu {approximate}",
    F.relu: lambda x, inplace=False: "relu",
    F.silu: lambda x, inplace=False: "silu",
    F.avg_pool2d: lambda x, size, *_, **__: f"pool by {size}",
    F.max_pool2d: lambda x, size, *_, **__: f"maximum of {size}",
    F.adaptive_avg_pool2d: lambda x, size: f"pool to {size}",
}


class Trace(TorchFunctionMode):
    """Writes down the layers and kernels that run, and by whose forward passes."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls, self.layers = calls, Words()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in LAYERS:
            self.layers.append(LAYERS[func](*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def take(self) -> Words:
        """What ran since it was last asked, sorted: the order inside a block shows in the logits."""
        words = sorted([*self.layers, *map(_called, self.calls)])
        self.layers.clear()
        self.calls.clear()
        return words


def _called(call: Call) -> str:
    """A call of a kernel: heads and their width, and every argument that is no tensor."""
    given = call.arguments
    q = given["q"]
    plain = {k: v for k, v in given.items() if v is not None and not isinstance(v, torch.Tensor)}
    plain["scale"] = round(plain.get("scale", q.shape[-1] ** -0.5), 5)
    more = ["bias"] * isinstance(given.get("bias"), torch.Tensor) + [f"{k} {v}" for k, v in plain.items()]
    return ", ".join([f"{call.name}: {q.shape[-2]} heads of {q.shape[-1]}", *more])


def trace(name: str) -> dict[str, Words]:
    """What runs in each embed, each block and after each stage, and what the configuration says of them.

    Blocks of a stage that are configured alike run once.
    """
    config, found = load_config(name), dict[str, Words]()
    kinds = [list({repr(block): block for block in stage.blocks}.values()) for stage in config.stages]
    stages = tuple(replace(stage, blocks=tuple(few)) for stage, few in zip(config.stages, kinds, strict=True))
    with torch.device("meta"), recording() as calls, Trace(calls) as words:
        model = Backbone(replace(config, stages=stages)).train()

        def note(place: str) -> Callable[..., None]:
            return lambda *_: found.update({place: words.take()})

        for s, stage in enumerate(model.stages):
            if stage.embed is not None:
                stage.embed.register_forward_hook(note(f"stage {s} embed"))
            for b, block in enumerate(stage.blocks):
                block.register_forward_hook(note(f"stage {s} kind {b}"))
            stage.register_forward_hook(note(f"stage {s} end"))
        model(torch.empty(2, 3, *config.img_size))
        found["head"] = [*words.take(), config.head.order]
    found["training"] = [f"init {config.init}", f"drop path {config.drop_path_rate}", *_treated(model)]
    for s, whole in enumerate(config.stages):
        if whole.embed is not None:
            found[f"stage {s} embed"].append(_part(whole.embed))
        for b, branches in enumerate(kinds[s]):
            found[f"stage {s} kind {b}"] += map(_branch, branches)
        found[f"stage {s} blocks"] = [f"kind {kinds[s].index(block)}" for block in whole.blocks]
    return {place: [_times(word, same) for word, same in groupby(words)] for place, words in found.items() if words}


def _treated(model: Backbone) -> Words:
    """Parameters that training treats in a way of their own, by their names in a block."""
    undecayed = {re.sub(r"^stages\.\d+\.(blocks\.\d+\.)?", "", name) for name in model.no_weight_decay()}
    rates = [f"learning rate of {name} times {scale}" for name, scale in model.config.lr_scale.items()]
    return [*(f"not decayed: {name}" for name in sorted(undecayed)), *rates]


def _branch(branch: BranchConfig) -> str:
    facts = [f"{branch.name} = {_part(branch.part)}"]
    facts += [f"layer scale {branch.layer_scale:g}"] if branch.layer_scale else []
    facts += [f"shortcut {_part(branch.shortcut)}"] if branch.shortcut else []
    facts += [f"{key} {getattr(branch, key)}" for key in ("reads", "writes") if getattr(branch, key)]
    return ", ".join([*facts, *["no residual"] * (not branch.residual), *["never dropped"] * (not branch.drop_path)])


def _part(part: Part) -> str:
    return ", ".join([part.type, *(f"{key} {value}" for key, value in sorted(part.params.items()))])


def _times(word: str, same: Iterable[str]) -> str:
    count = sum(1 for _ in same)
    return word if count == 1 else f"{count} x {word}"


def recorded() -> dict[str, dict[str, Words]]:
    """The traces of the file, by variant."""
    return json.loads(gzip.decompress(PATH.read_bytes()))


if __name__ == "__main__":
    traces = {name: trace(name) for name in zoo.list_models()}
    for name in sys.argv[1:]:
        print(json.dumps({name: traces[name]}, indent=1))
    PATH.write_bytes(gzip.compress(json.dumps(traces).encode(), mtime=0))
