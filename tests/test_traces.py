"""What logits of random weights hardly see: every variant runs the layers that it ran when it was compared."""

from __future__ import annotations

import pytest

from tests import traces
from tests.conftest import VARIANTS

RECORDED = traces.recorded()


def test_every_variant_is_recorded() -> None:
    assert sorted(RECORDED) == sorted(VARIANTS), "run python -m tests.traces and read what it prints"


@pytest.mark.parametrize("name", VARIANTS)
def test_layers_are_the_recorded_ones(name: str) -> None:
    assert traces.trace(name) == RECORDED[name]
