"""Which implementation of an operation runs for given tensors, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import ModuleType

import torch

from zoo.kernels import native
from zoo.kernels.exporting import exporting
from zoo.kernels.launch import capability
from zoo.kernels.switch import Switch
from zoo.kernels.transforms import transformed
from zoo.kernels.watched import watched

BACKENDS = ("triton", "native", "reference")
WIDEST_HEAD = 128
WIDEST_EXACT_HEAD = 64
"""The same in float32 if a program has 64 KiB of shared memory: before Ampere, and on AMD GPUs."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_forced: Switch[str | None] = Switch("backend", None)


def choose(q: torch.Tensor, native_limit: str = "") -> str:
    """The implementation for queries like `q`: "triton", "native" (C++ on the CPU) or "reference".

    `native_limit` is the reason why a call is too large for the C++ kernels of its operation, or empty.
    """
    return _choice(q, native_limit)[0]


def implementation(operation: str, q: torch.Tensor) -> ModuleType:
    """The module with `forward` and `backward` of an operation for queries like `q`."""
    return import_module(f"zoo.kernels.{operation}.{choose(q)}")


def explain_backend(operation: str, q: torch.Tensor, *tensors: torch.Tensor, **settings: object) -> str:
    """One line: which implementation of `operation` runs for these tensors, and why not a faster one.

    Args:
        operation: the name of a function of `zoo.kernels`.
        q, *tensors: the arguments of a call, queries first.
        settings: other arguments of the call by name, which determine whether it is too large for the C++ kernels.

    Raises:
        ValueError: if there is no such operation.
    """
    if find_spec(f"zoo.kernels.{operation}") is None:
        raise ValueError(f"there is no operation {operation!r} in zoo.kernels")
    if find_spec(f"zoo.kernels.{operation}.operator") is None:
        return f"{operation}: {_without_operator(operation, q, *tensors)}"
    backend, reason = _choice(q, _native_limit(operation, (q, *tensors), settings))
    return f"{operation}: {backend}, {reason}"


def _without_operator(operation: str, *tensors: torch.Tensor) -> str:
    own = f"zoo.kernels.{operation}.native"
    if find_spec(own) is None or not hasattr(import_module(own), "forward"):
        return "reference, PyTorch's own kernels are the fastest known"
    if not infers_natively(*tensors):
        return "reference, the C++ kernels run in float32 on the CPU without gradients"
    reason = _native_limit(operation, tensors, {})
    return f"reference, {reason}" if reason else "native, float32 on the CPU without gradients"


def _native_limit(operation: str, tensors: tuple[torch.Tensor, ...], settings: dict[str, object]) -> str:
    """The result of the operation's `limit` for a call, as far as its arguments are known."""
    public = getattr(import_module(f"zoo.kernels.{operation}.api"), operation)
    known = signature(public).bind_partial(*tensors, **settings).arguments
    limit = import_module(f"zoo.kernels.{operation}.native").limit
    needed = signature(limit).parameters
    return limit(**{name: known[name] for name in needed}) if needed.keys() <= known.keys() else ""


def use_backend(name: str) -> AbstractContextManager[None]:
    """Within this context every operation that has the implementation `name` uses it, for comparison or debugging.

    It applies to this thread only.

    Raises:
        ValueError: if there is no such implementation.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(BACKENDS)}")
    return _forced.to(name)


def infers_natively(*tensors: torch.Tensor) -> bool:
    """Whether C++ kernels that have no gradient run for tensors, of which the first is in float32 on the CPU.

    They do not where a gradient is wanted, and where something observes the operations.
    """
    if tensors[0].dtype != torch.float32:
        return False
    if any(type(t) not in _PLAIN or not t.is_cpu for t in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if forced() not in (None, "native") or watched() or native.why_not():
        return False
    return not any(t.is_neg() for t in tensors)  # views that PyTorch negates as it reads them


def forced() -> str | None:
    """The backend selected by `use_backend`, if any."""
    return _forced.value()


def as_forced(name: str | None) -> AbstractContextManager[None]:
    """`use_backend(name)`, or nothing: for a backward pass, which may run in another thread than its forward pass."""
    return nullcontext() if name is None else _forced.to(name)


def _choice(q: torch.Tensor, native_limit: str) -> tuple[str, str]:
    if transformed():
        return "reference", "torch.func and forward-mode differentiation need PyTorch's own operators"
    asked = forced()
    backend, reason = (asked, "asked for by use_backend") if asked is not None else _fastest(q)
    return ("reference", native_limit) if backend == "native" and native_limit else (backend, reason)


def _fastest(q: torch.Tensor) -> tuple[str, str]:
    if exporting():
        return "reference", "an exported program holds PyTorch's own operators only"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "reference", f"the kernels compute in float32, not in {q.dtype}"
    if q.shape[-1] > WIDEST_HEAD:
        return "reference", f"the kernels take heads of at most {WIDEST_HEAD} channels, not {q.shape[-1]}"
    if q.device.type == "cuda":
        missing = _why_no_triton(q.device) or _too_wide(q)
        return ("reference", missing) if missing else ("triton", f"{q.dtype} on a GPU")
    if q.device.type == "cpu":
        missing = native.why_not()
        return ("reference", missing) if missing else ("native", f"{q.dtype} on the CPU")
    return "reference", f"there are no kernels for {q.device.type}"


@torch.compiler.assume_constant_result
def _why_no_triton(device: torch.device) -> str:
    """Why Triton kernels cannot run on a GPU; empty if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if capability(device) < 75:
        return "the kernels need a GPU of compute capability 7.5 or later"
    return ""


def _too_wide(q: torch.Tensor) -> str:
    """Why heads that fit other GPUs do not fit this one; empty if they do."""
    if q.dtype != torch.float32 or q.shape[-1] <= WIDEST_EXACT_HEAD or not _has_little_memory(q.device):
        return ""
    return f"this GPU has the memory for float32 heads of at most {WIDEST_EXACT_HEAD} channels, not {q.shape[-1]}"


@torch.compiler.assume_constant_result
def _has_little_memory(device: torch.device) -> bool:
    """Whether a program has 64 KiB of shared memory."""
    return capability(device) < 80 or bool(torch.version.hip)
