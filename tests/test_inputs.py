"""What unlucky users pass in, drawn at random as `scripts/fuzz_inputs.py` does by the thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz_inputs
import fuzz_values

from zoo.config import schema

DRAWS = 2000


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")
def test_nothing_drawn_at_random_is_taken_wrongly_or_ends_in_a_traceback() -> None:
    with torch.random.fork_rng():
        found = fuzz_inputs.run(range(DRAWS))
    failures = [text for one in found.values() for text in one.failures]
    assert not failures, "\n".join(failures[:10])
    assert sum(one.draws for one in found.values()) == DRAWS
    assert all(one.draws > one.refused for one in found.values())


def test_it_finds_a_value_that_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    scalar = schema._check_scalar

    def lenient(value, kind, where):
        return scalar(float(value) if kind is float and value is True else value, kind, where)

    monkeypatch.setattr(schema, "_check_scalar", lenient)
    failures = fuzz_inputs.run(seed for seed in range(4000) if seed % 20 < fuzz_values.SHARES["recipe"])[
        "recipe"
    ].failures
    assert any("True was taken as 1.0" in text for text in failures), failures


def test_it_finds_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_values, "parse_setting", lambda text: (text, int("one")))
    assert "ValueError: invalid literal" in fuzz_inputs.run(range(20))["setting"].failures[0]
