"""Draws calls of attention operations: sizes, layouts, dtypes and values that are allowed, and some that are not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

import torch

from zoo.kernels import region_routes

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
HEAD_DIMS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 72, 96, 127, 128)
SIDES = (*range(1, 18), 20, 24, 28, 31, 32, 33)
MOST_NUMBERS = 6_000
"""Of q: small calls find as much as large ones."""


@dataclass
class Call:
    """One call of an operation.

    Attributes:
        tensors: by the names of its arguments.
        settings: its other arguments.
        wanted: names of the tensors whose gradients are asked for.
        beyond: whether positions beyond the map take part in the specification, where 0 * NaN is NaN.
        special: the values that were planted.
        wrong: why the call must be refused; empty if it must not.
    """

    operation: str
    tensors: dict[str, torch.Tensor]
    settings: dict[str, object]
    beyond: bool
    grad: torch.Tensor | None = None
    wanted: list[str] = field(default_factory=list)
    special: str = ""
    wrong: str = ""

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{n} {tuple(t.shape)} by {t.stride()}{'*' * (n in self.wanted)}" for n, t in self.tensors.items()
        )
        dtype = str(self.tensors["q"].dtype).removeprefix("torch.")
        return f"{self.operation} {dtype}: {shapes}; {self.settings} {self.special}{self.wrong}"


def draw(operation: str, seed: int) -> Call:
    """The call of a seed."""
    random = Random(seed)
    torch.manual_seed(seed)
    call = DRAWN[operation](random)
    q = call.tensors["q"]
    call.grad = _laid_out(random, q.shape, q.dtype)
    floating = [name for name, t in call.tensors.items() if t.is_floating_point()]
    call.wanted = random.choice([floating, floating, [], [name for name in floating if random.random() < 0.5]])
    if random.random() < 0.3:
        _plant(random, call, floating)
    if random.random() < 0.05:
        _spoil(random, call)
    return call


def _pair(random: Random, values) -> tuple[int, int]:
    first = random.choice(values)
    return first, first if random.random() < 0.5 else random.choice(values)


def _window(random: Random) -> Call:
    size, interval = _pair(random, range(1, 9)), _pair(random, (1, 1, 1, 2, 3, 5))
    tensors = _maps(random, (1, 1))
    shape, heads, dtype = tensors["q"].shape[1:3], tensors["q"].shape[3], tensors["q"].dtype
    if random.random() < 0.6:
        tensors["bias"] = _table(random, (heads, math.prod(size), math.prod(size)), dtype)
    beyond = any(n % (s * i) for n, s, i in zip(shape, size, interval, strict=True))
    return Call("window_attention", tensors, {"size": size, "interval": interval, **_scale(random)}, beyond)


def _neighborhood(random: Random) -> Call:
    size, dilation = _pair(random, (1, 3, 3, 5, 7, 7, 9, 11, 13, 15)), _pair(random, (1, 1, 1, 2, 3))
    size = tuple(s if s * d <= 33 else 3 for s, d in zip(size, dilation, strict=True))
    tensors = _maps(random, tuple(s * d for s, d in zip(size, dilation, strict=True)))
    if random.random() < 0.6:
        shape = (tensors["q"].shape[3], 2 * size[0] - 1, 2 * size[1] - 1)
        tensors["bias"] = _table(random, shape, tensors["q"].dtype)
    return Call("neighborhood_attention", tensors, {"size": size, "dilation": dilation, **_scale(random)}, False)


def _routing(random: Random) -> Call:
    region = _pair(random, range(1, 9))
    tensors = _maps(random, (1, 1))
    shape = tensors["q"].shape[1:3]
    regions = math.prod(-(-n // r) for n, r in zip(shape, region, strict=True))
    topk = random.randint(1, min(4, regions))
    if random.random() < 0.5:
        tensors["routes"] = region_routes(tensors["q"], tensors["k"], region, topk)
    else:
        routes = torch.randint(regions, (topk, tensors["q"].shape[0], regions)).permute(1, 2, 0)
        tensors["routes"] = routes.to(random.choice([torch.int64, torch.int32]))
    beyond = any(n % r for n, r in zip(shape, region, strict=True))
    return Call("routing_attention", tensors, {"region": region, **_scale(random)}, beyond)


def _aggregated(random: Random) -> Call:
    size = random.choice((1, 3, 3, 3, 5, 7))
    tensors = _maps(random, (1, 1))
    batch, height, width, heads, dim = tensors["q"].shape
    dtype, pooled = tensors["q"].dtype, _pair(random, range(1, 8))
    tensors["q"] = tensors["q"] * dim**-0.5
    for name in ("pooled_k", "pooled_v"):
        tensors[name] = _laid_out(random, (batch, *pooled, heads, dim), dtype)
    tensors["local_bias"] = _table(random, (heads, size**2), dtype)
    tensors["pooled_bias"] = _table(random, (heads, height * width, math.prod(pooled)), dtype)
    tensors["extra"] = _laid_out(random, (batch, height, width, heads, size**2), dtype)
    return Call("aggregated_attention", tensors, {"size": size}, size > 1)


DRAWN = {
    "window_attention": _window,
    "neighborhood_attention": _neighborhood,
    "routing_attention": _routing,
    "aggregated_attention": _aggregated,
}


def _scale(random: Random) -> dict[str, float]:
    return {} if random.random() < 0.6 else {"scale": random.choice((1, 0.3, 0, -0.5, 2.0))}


def _maps(random: Random, least: tuple[int, int]) -> dict[str, torch.Tensor]:
    """q, k and v of one layout, of layouts of their own, or one tensor."""
    dtype, dim, heads, batch = (random.choice(c) for c in (DTYPES, HEAD_DIMS, (1, 2, 3, 5), (0, 1, 1, 2, 2, 3)))
    height, width = (random.choice([s for s in SIDES if s >= n]) for n in least)
    while max(1, batch) * height * width * heads * dim > MOST_NUMBERS and (heads > 1 or batch > 1 or dim > 1):
        heads, batch, dim = (heads // 2, batch, dim) if heads > 1 else (heads, min(batch, 1), max(1, dim // 2))
        heads = max(1, heads)
    shape = (batch, height, width, heads, dim)
    way = random.random()
    if way < 0.3:
        return dict(zip("qkv", torch.randn(batch, height, width, 3, heads, dim, dtype=dtype).unbind(3), strict=True))
    if way < 0.35:
        return dict.fromkeys("qkv", torch.randn(shape, dtype=dtype))
    return {name: _laid_out(random, shape, dtype) for name in "qkv"}


def _laid_out(random: Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A map in some layout."""
    way = random.randrange(6)
    if way == 0:  # any order of axes
        order = random.sample(range(5), 5)
        return torch.randn([shape[i] for i in order], dtype=dtype).permute(*(order.index(i) for i in range(5)))
    if way == 1:  # the same numbers again and again
        axes = random.sample(range(5), random.randint(1, 5))
        return torch.randn([1 if i in axes else n for i, n in enumerate(shape)], dtype=dtype).expand(shape)
    if way == 2:  # cut out
        steps = [random.choice((1, 1, 2, 3)) for _ in shape]
        large = torch.randn([n * s + 1 for n, s in zip(shape, steps, strict=True)], dtype=dtype)
        slices = tuple(slice(1, 1 + n * s, s) for n, s in zip(shape, steps, strict=True))
        return large[slices]
    return torch.randn(shape, dtype=dtype)


def _table(random: Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    way = random.random()
    if way < 0.2:
        return torch.randn(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])
    return torch.randn(shape, dtype=dtype) if way < 0.9 else torch.randn(shape[-1:], dtype=dtype).expand(shape)


VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "zero": 0.0, "denormal": 1e-40, "large": 30.0}


def _plant(random: Random, call: Call, floating: list[str]) -> None:
    """One number, one row or all of a tensor becomes special."""
    name, kind = random.choice([*floating, "grad"]), random.choice(list(VALUES))
    tensor = (call.grad if name == "grad" else call.tensors[name]).clone()
    if not tensor.numel():
        return
    if kind == "large":
        tensor *= VALUES[kind]
    elif kind in ("zero", "denormal") and random.random() < 0.5:
        tensor = torch.full_like(tensor, VALUES[kind])
    else:
        at = [random.randrange(n) for n in tensor.shape]
        tensor[tuple(at[: random.choice((-1, tensor.ndim))])] = VALUES[kind]
    call.special = f"{kind} in {name}"
    if name == "grad":
        call.grad = tensor
    else:
        call.tensors[name] = tensor


def _spoil(random: Random, call: Call) -> None:
    """Make a call that its operation must refuse."""
    tensors, settings = call.tensors, call.settings
    pair = "region" if "region" in settings else "size"
    tables = [n for n in tensors if n not in "qkv" and "pooled_k" != n != "pooled_v"]
    q = tensors["q"]
    ways = {
        "k of another dtype": ("k", tensors["k"].to(torch.float16 if q.dtype != torch.float16 else torch.float32)),
        "k on another device": ("k", torch.empty(q.shape, dtype=q.dtype, device="meta")),
        "v of another shape": ("v", torch.cat([tensors["v"]] * 2, 4)),
        "q of four axes": ("q", q.flatten(3)),
        "integers": None,
        "no channels": None,
        "no rows": None,
        "size of zero": (pair, 0),
        "size of a fraction": (pair, 2.5),
        "negative size": (pair, -3),
    }
    if tables:
        table = random.choice(tables)
        ways["a table on another device"] = (table, tensors[table].to("meta"))
        ways["a table of another shape"] = (table, tensors[table][:, :-1])
    if call.operation == "neighborhood_attention":
        ways |= {"an even size": ("size", 4), "a map too small": ("size", 35)}
    if "routes" in tensors:
        ways["routes that are no integers"] = ("routes", tensors["routes"].float())
        if tensors["routes"].numel():
            ways["routes beyond"] = ("routes", tensors["routes"] + 9999)
            ways["negative routes"] = ("routes", tensors["routes"] - 9999)
    call.wrong = random.choice(list(ways))
    if call.wrong == "integers":
        changed = {n: tensors[n].long() for n in tensors if n[-1] in "qkv"}
    elif call.wrong == "no channels":
        changed = {n: tensors[n][..., :0] for n in tensors if n[-1] in "qkv" and tensors[n].ndim == 5}
    elif call.wrong == "no rows":
        changed = {n: tensors[n][:, :0] for n in "qkv"}
    else:
        name, value = ways[call.wrong]
        (tensors if isinstance(value, torch.Tensor) else settings)[name] = value
        return
    tensors.update(changed)
