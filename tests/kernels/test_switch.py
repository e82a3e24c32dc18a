"""What one thread asks for holds in no other, and ends when it is over."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch

import zoo
from zoo.kernels import explain_backend, neighborhood_attention, recording, use_backend
from zoo.kernels.exporting import export_safe, exporting

Q = torch.randn(1, 7, 9, 2, 4, generator=torch.Generator().manual_seed(0))


def _elsewhere(read) -> object:
    """What another thread finds."""
    found = []
    thread = threading.Thread(target=lambda: found.append(read()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_see_what_they_set() -> None:
    def line() -> str:
        return explain_backend("neighborhood_attention", Q)

    with use_backend("reference"), export_safe(), recording() as calls:
        assert "asked for by use_backend" in line()
        assert "asked for" not in _elsewhere(line)
        assert exporting()
        assert not _elsewhere(exporting)
        _elsewhere(lambda: neighborhood_attention(Q, Q, Q, 3))
        assert calls == []
    assert "asked for" not in line()
    assert not exporting()


def test_blocks_that_end_in_another_order_leave_nothing() -> None:
    """As two threads that serve an exportable model do."""
    first, second = use_backend("reference"), use_backend("reference")
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with second:
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        entered.wait(10)
    assert "asked for" not in explain_backend("neighborhood_attention", Q)
    left.set()
    thread.join()
    assert "asked for" not in explain_backend("neighborhood_attention", Q)


def test_an_exportable_model_in_two_threads_slows_no_other() -> None:
    model, images = zoo.create_model("nat_mini", exportable=True).eval(), torch.zeros(1, 3, 32, 32)

    def serve() -> None:
        with torch.inference_mode():
            for _ in range(5):
                model(images)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "native" in explain_backend("neighborhood_attention", Q)


def test_compiled_functions_follow_the_backend() -> None:
    run = torch.compile(lambda q: neighborhood_attention(q, q, q, 3), fullgraph=True, backend="aot_eager")
    expected = run(Q)
    with use_backend("reference"), recording() as calls:
        torch.testing.assert_close(run(Q), expected)
        neighborhood_attention(Q, Q, Q, 3)
    assert len(calls) >= 1
    assert torch.equal(run(Q), expected)


def _backward_elsewhere(loss: torch.Tensor) -> None:
    """As PyTorch does on a GPU."""
    _elsewhere(loss.backward)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_backward_pass_in_another_thread_is_that_of_its_forward_pass(backend: str) -> None:
    model = zoo.create_model("nat_mini", num_classes=3, drop_path_rate=0.0)
    images, gradients = torch.randn(1, 3, 32, 32), []
    for checkpointed in (False, True):
        model.set_grad_checkpointing(checkpointed)
        model.zero_grad()
        with use_backend(backend):
            loss = model(images).square().sum()
            _backward_elsewhere(loss)
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair)


def test_a_backend_asked_for_where_it_is_not_chosen_serves_the_backward_pass_too() -> None:
    q = torch.randn(1, 4, 4, 1, 136, requires_grad=True)
    with use_backend("native"):
        out = neighborhood_attention(q, q, q, 3)
    _backward_elsewhere(out.sum())
    assert q.grad.isfinite().all()


def test_a_block_that_ends_in_another_task_ends() -> None:
    def block():
        with use_backend("reference"):
            yield

    generator = block()
    contextvars.copy_context().run(next, generator)
    next(generator, None)
    assert "asked for" not in explain_backend("neighborhood_attention", Q)
    assert neighborhood_attention(Q, Q, Q, 3).isfinite().all()
