"""Other implementations of the operations of `zoo.kernels` for comparison: those installed that can express a case.

flex_attention and sdpa: see `kernel_masks.py`; of windows and routed regions the reference itself is SDPA on
partitioned or gathered tensors, which is how timm and the published code do it. natten: up to 0.17 in three steps with
a bias, as in the published models, later fused and without a bias. swattention: the CUDA extension of TransNeXt's
authors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from bench.kernel_masks import FLEX, GATHERED, SDPA, Function

THREADS = 128
"""Of a block of swattention's kernels, as its authors call them."""


@dataclass(frozen=True)
class Peer:
    """A function of the operation's tensors by name; those in `without` are not passed to it."""

    name: str
    call: Function
    without: tuple[str, ...] = ()


def peers(operation: str, case, batch: int, device: str, training: bool) -> dict[str, Callable[[], Peer | None]]:
    """Factories for the available other implementations of an operation, by name; None for one that cannot run a case.

    Each is created in its turn, so that a failure of one does not affect the others.
    """
    found = {}
    if not (training and device == "cpu"):  # flex_attention has no backward pass on the CPU
        found["flex_attention"] = partial(_of_table, FLEX, "flex_attention", operation, case, batch, device)
    found["sdpa"] = partial(_of_table, SDPA, "sdpa", operation, case, batch, device)
    found["sdpa, gathered"] = partial(_of_table, GATHERED, "sdpa, gathered", operation, case, batch, device)
    if operation == "neighborhood_attention" and find_spec("natten"):
        found["natten"] = partial(_natten, case, device)
    if operation == "aggregated_attention" and device == "cuda" and find_spec("swattention"):
        found["swattention"] = lambda: Peer("swattention", _swattention(case))
    return found


def _of_table(table: dict[str, Callable], name: str, operation: str, case, batch: int, device: str) -> Peer | None:
    call = table[operation](case, batch, device) if operation in table else None
    return None if call is None else Peer(name, call)


def _natten(case, device: str) -> Peer | None:
    """NATTEN of whatever version: with a bias and in three steps if it still can, else its fused kernel on a GPU."""
    natten = import_module("natten")
    name = f"natten {_version('natten', natten)}"
    functional = import_module("natten.functional")
    if "rpb" in inspect.signature(getattr(functional, "na2d_qk", _natten)).parameters:
        return Peer(name, _natten_in_steps(functional, case))
    if device != "cuda":
        return None

    def call(q, k, v):
        return natten.na2d(q, k, v, kernel_size=case.size, dilation=case.dilation)

    return Peer(f"{name}, no bias", call, ("bias",))


def _natten_in_steps(functional, case) -> Function:
    """As in the published models: logits, softmax, average, on heads-first tensors."""

    def call(q, k, v, bias=None):
        q, k, v = (t.permute(0, 3, 1, 2, 4).contiguous() for t in (q, k, v))
        logits = functional.na2d_qk(q * case.head_dim**-0.5, k, case.size, case.dilation, rpb=bias)
        out = functional.na2d_av(logits.softmax(-1), v, case.size, case.dilation)
        return out.permute(0, 2, 3, 1, 4)

    return call


def _swattention(case) -> Function:
    """The window by the extension, the pooled keys by matrix products, one softmax over both, as its authors use it."""
    extension = import_module("swattention")
    (height, width), taps = case.shape, case.size**2

    class Logits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, bias):
            ctx.save_for_backward(q, k)
            return extension.qk_rpb_forward(q, k, bias, height, width, case.size, THREADS)

        @staticmethod
        def backward(ctx, grad):
            saved = ctx.saved_tensors
            return (*extension.qk_rpb_backward(grad.contiguous(), *saved, height, width, case.size, THREADS),)

    class Average(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weights, v):
            ctx.save_for_backward(weights, v)
            return extension.av_forward(weights, v, height, width, case.size, THREADS)

        @staticmethod
        def backward(ctx, grad):
            saved = ctx.saved_tensors
            return (*extension.av_backward(grad.contiguous(), *saved, height, width, case.size, THREADS),)

    def call(q, k, v, pooled_k, pooled_v, local_bias, pooled_bias, extra):
        q, k, v, pooled_k, pooled_v, extra = (
            t.flatten(1, 2).transpose(1, 2).contiguous() for t in (q, k, v, pooled_k, pooled_v, extra)
        )
        logits = torch.cat([Logits.apply(q, k, local_bias), q @ pooled_k.mT + pooled_bias], dim=-1)
        near, far = logits.softmax(-1).to(v.dtype).split([taps, logits.shape[-1] - taps], dim=-1)
        out = Average.apply((near + extra).contiguous(), v) + far @ pooled_v
        return out.transpose(1, 2).unflatten(1, (height, width))

    return call


def _version(name: str, module) -> str:
    """The version of a package, installed or only on the path."""
    try:
        return version(name)
    except PackageNotFoundError:
        return getattr(module, "__version__", "of unknown version")
