"""Compiles Triton kernels for absent GPUs: what an operation would launch, and the resources it would need.

The launch function (`zoo.kernels.launch`) is replaced by a recorder, so an operation on the CPU reveals its launches
without running them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import zoo.kernels
from zoo.kernels import launch as door
from zoo.kernels import use_backend

warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
SHARED = {"sm_75": 65536, "sm_80": 166912, "sm_86": 101376, "sm_89": 101376}
"""Bytes of shared memory that a program may take; see `Target.shared`."""
USAGE = ("registers", "spills", "shared", "instructions", "loops")


@dataclass(frozen=True)
class Target:
    """A GPU by the name of its generation: sm_80, gfx942."""

    name: str

    @property
    def generation(self) -> int:
        """What `zoo.kernels.launch.capability` answers on it."""
        return int(self.name.removeprefix("sm_")) if self.cuda else 90

    @property
    def cuda(self) -> bool:
        return self.name.startswith("sm_")

    @property
    def shared(self) -> int:
        """The maximum shared memory of a program, in bytes; CUDA C++ Programming Guide, AMD's CDNA 3 manual."""
        if not self.cuda:
            return 65536
        return SHARED.get(self.name, 232448 if self.generation < 120 else 101376)

    def triton(self) -> GPUTarget:
        return GPUTarget("cuda", self.generation, 32) if self.cuda else GPUTarget("hip", self.name, 64)


@dataclass(frozen=True)
class Kernel:
    """A kernel as Triton would specialise it for the arguments of a launch."""

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    aligned: tuple[int, ...]
    """Which arguments are multiples of 16."""
    small: tuple[int, ...]
    """Which arguments are tensors of at most 2 GB."""
    options: tuple[tuple[str, int], ...]


def recorded(operation: str, case, dtype: str, generations: list[int], batch: int) -> dict[int, list[Kernel]]:
    """The launches of a forward and a backward pass of a case, by GPU generation; tf32 counts as a dtype here."""
    step = prepared(operation, case, dtype, batch)
    found = {}
    for generation in generations:
        with recorder(generation, precision_of(dtype)) as found[generation]:
            step()
    return found


def precision_of(dtype: str) -> str:
    """What `zoo.kernels.launch.input_precision` answers for a dtype."""
    return "tf32" if dtype == "tf32" else "ieee"


def prepared(operation: str, case, dtype: str, batch: int) -> Callable[[], None]:
    """A forward and a backward pass of a case on the CPU, for use where launches are not run."""
    import_module(f"zoo.kernels.{operation}.triton")
    tensors = case.tensors(batch, dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype))
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}

    def step() -> None:
        with use_backend("triton"):
            out = getattr(zoo.kernels, operation)(**leaves, **case.settings())
            torch.autograd.grad(out, [t for t in leaves.values() if t.requires_grad], torch.zeros_like(out))

    return step


@contextmanager
def recorder(generation: int, precision: str = "ieee") -> Iterator[list[Kernel]]:
    """Within this context launches are recorded instead of run, as on a GPU of that generation with that precision."""
    kernels: list[Kernel] = []

    def launch(kernel, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        if all(grid):
            kernels.append(specialised(kernel, arguments, options))

    with at_the_door(launch, generation, precision):
        yield kernels


@contextmanager
def at_the_door(launch: Callable, generation: int, precision: str) -> Iterator[None]:
    """Within this context `launch` takes the place of `zoo.kernels.launch.launch`, with the answers of some GPU."""
    replaced = {
        door.launch: launch,
        door.capability: lambda device: generation,
        door.input_precision: lambda q: precision,
    }
    places = [
        (module, name, value)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("zoo.kernels")
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, tl.constexpr)
        and value in replaced  # those of Triton 3.3 have no hash
    ]
    for module, name, value in places:
        setattr(module, name, replaced[value])
    try:
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def specialised(kernel, arguments: tuple, options: dict[str, object]) -> Kernel:
    """The variant of a `triton.jit` kernel that is compiled for these arguments: the rules of `triton.runtime.jit`."""
    named = {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
    bound = kernel.signature.bind(*arguments, **named)
    bound.apply_defaults()
    signature, constants, aligned, small = {}, {}, [], []
    for i, parameter in enumerate(kernel.params):
        value = bound.arguments[parameter.name]
        free = not parameter.do_not_specialize
        whole = isinstance(value, int) and not isinstance(value, bool)
        if parameter.is_constexpr or value is None or (whole and value == 1 and free):
            plain = value.value if isinstance(value, tl.constexpr) else value  # Triton 3.3 cannot hash the other
            signature[parameter.name], constants[parameter.name] = "constexpr", plain
            continue
        signature[parameter.name] = type_of(value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value if whole else 1
        if number % 16 == 0 and free and not parameter.do_not_specialize_on_alignment:
            aligned.append(i)
        if isinstance(value, torch.Tensor) and value.untyped_storage().size() < 2**31:
            small.append(i)
    pairs = (tuple(part.items()) for part in (signature, constants))
    return Kernel(kernel.__module__, kernel.__name__, *pairs, tuple(aligned), tuple(small), tuple(options.items()))


def type_of(value: object) -> str:
    """The type of a run-time argument in Triton's words."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(kernel: Kernel, target: Target) -> dict[str, object]:
    """A kernel's resources on a target: registers, spilled bytes and code per thread, shared memory; or an error."""
    attributes = {(i,): [["tt.divisibility", 16]] for i in kernel.aligned}
    if not target.cuda:
        for i in kernel.small:
            attributes.setdefault((i,), []).append(["tt.pointer_range", 32])
    try:
        function = getattr(import_module(kernel.module), kernel.name)
        source = ASTSource(function, dict(kernel.signature), dict(kernel.constants), attributes)
        binary = triton.compile(source, target=target.triton(), options=dict(kernel.options))
    except Exception as error:  # any compiler error is a result
        lines = str(error).strip().splitlines() or [""]
        return dict.fromkeys(USAGE, "") | {"error": f"{type(error).__name__}: {lines[-1][:200]}"}
    usage = _cuda_usage(binary.asm["cubin"]) if target.cuda else _hip_usage(binary.asm["amdgcn"])
    return usage | {"shared": binary.metadata.shared, "error": ""}


def _cuda_usage(cubin: bytes) -> dict[str, object]:
    """Registers, spills (bytes of the stack: a kernel without calls and local arrays has it for them alone), code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, spills = (int(re.search(rf"\b{word}:(\d+)", text)[1]) for word in ("REG", "STACK"))
    return {"registers": registers, "spills": spills} | _instructions(text)


def _instructions(sass: str) -> dict[str, object]:
    """How many instructions a kernel has, and each of its innermost loops, in their order: "210+455".

    A backward jump marks a loop; a jump to itself ends a program.
    """
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass)]
    jumps = [(at, re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)) for at, text in code]
    loops = sorted({(int(to[1], 16), at) for at, to in jumps if to and int(to[1], 16) < at})
    inner = [(a, b) for a, b in loops if not any((a, b) != (c, d) and a <= c and d <= b for c, d in loops)]
    sizes = [sum(first <= at <= last for at, _ in code) for first, last in inner]
    return {"instructions": len(code), "loops": "+".join(map(str, sizes))}


def _hip_usage(assembly: str) -> dict[str, object]:
    """Vector registers and bytes of scratch memory."""
    words = {"registers": "vgpr_count", "spills": "private_segment_fixed_size"}
    found = {name: int(re.search(rf"\.{word}:\s*(\d+)", assembly)[1]) for name, word in words.items()}
    return found | {"instructions": "", "loops": ""}
