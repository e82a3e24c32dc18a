"""Named transforms of values that a checkpoint may need; all other tensors are copied unchanged."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.errors import Where


def squeeze(value: torch.Tensor, shape: torch.Size, argument: str) -> torch.Tensor:
    """Without axes of length 1, such as those of a 1x1 convolution kernel, if the rest is `shape`."""
    long = [n for n in value.shape if n != 1]
    return value.reshape(shape) if long == [n for n in shape if n != 1] else value


def split_heads_first(value: torch.Tensor, shape: torch.Size, argument: str) -> torch.Tensor:
    """Rows ordered (heads, q k v, head_dim) to (q k v, heads, head_dim); the argument is head_dim."""
    return value.unflatten(0, (-1, 3, int(argument))).transpose(0, 1).flatten(0, 2)


def swin_table(value: torch.Tensor, shape: torch.Size, argument: str) -> torch.Tensor:
    """Swin's ((2h-1)(2w-1), heads) table of query - key to (heads, 2h-1, 2w-1) of key - query.

    `shape` is the model's; a table of another, square, window keeps its own size.
    """
    side = round(value.shape[0] ** 0.5)
    sides = shape[1:] if shape[1] * shape[2] == value.shape[0] else (side, side)
    return value.t().unflatten(1, tuple(sides)).flip(1, 2)


def apply(rule: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The transform that `rule` names, as in `squeeze` or `split_heads_first:32`, for a target of `shape`.

    Raises:
        ConfigError: if there is no such transform.
    """
    name, _, argument = rule.partition(":")
    if name not in TRANSFORMS:
        raise Where("key rules").unknown(name, TRANSFORMS, "transform")
    return TRANSFORMS[name](value, shape, argument)


TRANSFORMS: dict[str, Callable[..., torch.Tensor]] = {
    "squeeze": squeeze,
    "split_heads_first": split_heads_first,
    "swin_table": swin_table,
}
