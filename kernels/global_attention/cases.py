"""The shapes of global attention in real variants at their own image size, and edge cases.

One list for tests, benchmarks and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A call: maps of queries and of keys (height, width), heads, head_dim, whether there is a bias."""

    name: str
    shape: tuple[int, int]
    keys: tuple[int, int]
    heads: int
    head_dim: int
    bias: bool = False


MODELS = (
    Case("litv2_s stage 2, low frequencies", (14, 14), (7, 7), 10, 32),
    Case("litv2_s stage 3", (7, 7), (7, 7), 24, 32),
    Case("biformer_tiny stage 3", (7, 7), (7, 7), 8, 64),
    Case("biformer_base stage 3", (7, 7), (7, 7), 8, 96),
    Case("transnext_micro stage 3", (7, 7), (7, 7), 16, 24, bias=True),
    Case("vitrpb_small", (14, 14), (14, 14), 12, 32, bias=True),
)
AWKWARD = (
    Case("odd maps", (5, 9), (3, 4), 2, 16, bias=True),
    Case("one key", (4, 3), (1, 1), 1, 8),
    Case("one query", (1, 1), (2, 5), 3, 8, bias=True),
)
