"""What tests of kernels share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Triton's interpreter multiply bfloat16, which it keeps as bits, as numbers; a GPU does that by itself."""
    if torch.cuda.is_available():
        return
    import numpy
    import triton.language as tl
    from triton.runtime import interpreter

    def numbers(x) -> interpreter.TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        bits = x.data.astype(numpy.uint32) << 16
        return interpreter.TensorHandle(bits.view(numpy.float32), tl.float32)

    create_dot = interpreter.InterpreterBuilder.create_dot

    def multiply(self, a, b, *rest):
        return create_dot(self, numbers(a), numbers(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiply)
