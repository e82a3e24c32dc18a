"""What the operations tell those who watch them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo.kernels
from zoo.kernels import channel_attention, global_attention, neighborhood_attention, recording

Q = torch.randn(1, 7, 9, 2, 4, generator=torch.Generator().manual_seed(0))


def test_calls_are_noted_in_order_with_all_their_arguments() -> None:
    with recording() as calls:
        out = neighborhood_attention(Q, k=Q, v=Q, size=3)
        channel_attention(Q, Q, Q)
    assert [call.name for call in calls] == ["neighborhood_attention", "channel_attention"]
    assert {key: calls[0].arguments[key] for key in ("size", "dilation", "bias")} == {
        "size": 3,
        "dilation": 1,
        "bias": None,
    }
    assert calls[0].arguments["v"] is Q
    assert torch.equal(calls[0].again(), out)
    assert not calls[0].again(v=torch.zeros_like(Q)).any()


def test_nothing_is_noted_outside_and_after_an_error() -> None:
    with recording() as outer:
        with pytest.raises(ValueError, match="must agree"), recording() as inner:
            global_attention(Q, Q[..., :1], Q)
        global_attention(Q, Q, Q)
    global_attention(Q, Q, Q)
    assert (len(outer), len(inner)) == (1, 1)


def test_every_attention_operation_is_recorded() -> None:
    for folder in Path(zoo.kernels.__file__).parent.glob("*_attention"):
        operation = getattr(zoo.kernels, folder.name)
        assert operation.__module__ == f"zoo.kernels.{folder.name}.api"
        assert hasattr(operation, "__wrapped__"), (
            f"{folder.name} lacks @recorded: zoo.explain.attention would not see it"
        )


def test_recording_leaves_compiled_graphs_whole() -> None:
    run = torch.compile(lambda q: global_attention(q, q, q), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(Q), global_attention(Q, Q, Q))
