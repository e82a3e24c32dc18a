"""Any height and width, per call: padded positions never influence a real one."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import zoo
from tests import golden
from tests.conftest import SMALLEST
from zoo.nn.layers import cpu
from zoo.nn.layers.conv import convolve, least_padding, pad_same
from zoo.nn.mixers.window import WindowAttention

MODELS = {family: zoo.create_model(name, num_classes=11).eval() for family, name in SMALLEST.items()}


@pytest.mark.parametrize("size", [(97, 211), (32, 32), (33, 65), (1, 1), (224, 100), (250, 310)])
def test_odd_sizes_give_maps_of_rounded_up_size(family: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        last, maps = MODELS[family].forward_intermediates(golden.images(1, *size))
        assert torch.isfinite(MODELS[family].forward_head(last)).all()
    for i, level in enumerate(maps):
        assert tuple(level.shape[2:]) == tuple(_sides(family, n)[i] for n in size)


def _sides(family: str, length: int) -> list[int]:
    """The side of each map: halved and rounded up, but for families whose published code rounds down."""
    if family == "nat_isotropic":
        return [-(-length // 16)] * 4
    sides = [max(1, length // 4) if family == "crossformer" else -(-length // 4)]
    while len(sides) < 4:
        sides.append(max(1, sides[-1] // 2) if family in ("crossformer", "litv2") else -(-sides[-1] // 2))
    return sides


@settings(max_examples=15, deadline=None)
@given(family=st.sampled_from(sorted(SMALLEST)), height=st.integers(32, 320), width=st.integers(32, 320))
def test_a_batch_of_two_equals_two_batches_of_one(family: str, height: int, width: int) -> None:
    pair = golden.images(2, height, width)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        together = MODELS[family](pair)
        alone = torch.cat([MODELS[family](pair[:1]), MODELS[family](pair[1:])])
    assert (together - alone).abs().max() < 1e-4 * together.std()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1333, 64), (96, 1333)])
def test_long_sides(family: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert torch.isfinite(MODELS[family](golden.images(1, *size))).all()


@pytest.mark.parametrize("interval", [1, "grid"])
@pytest.mark.parametrize("shape", [(9, 16), (3, 5), (13, 7), (7, 7), (8, 22), (1, 1)])
def test_masked_attention_equals_brute_force(interval: int | str, shape: tuple[int, int]) -> None:
    """Each query against the keys of its own group, one at a time, without any padding."""
    mixer = WindowAttention(32, head_dim=16, size=(7, 7), interval=interval, pos_bias="table").double()
    torch.nn.init.normal_(mixer.pos_bias.table)
    x = torch.randn(2, *shape, 32, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), _brute_force(mixer, x), rtol=0, atol=1e-12)


def _brute_force(mixer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    qkv = F.linear(x, mixer.qkv.weight, mixer.qkv.bias).unflatten(-1, (3, 2, 16))
    q, k, v = qkv.unbind(-3)
    height, width = x.shape[1:3]
    out = torch.zeros_like(q)
    for y in range(height):
        for z in range(width):
            keys = [
                (i, j, di, dj)
                for i, di in _partners(y, height, mixer.interval)
                for j, dj in _partners(z, width, mixer.interval)
            ]
            logits = torch.stack([(q[:, y, z] * k[:, i, j]).sum(-1) / 4 for i, j, _, _ in keys], dim=-1)
            logits = logits + torch.stack([mixer.pos_bias.table[:, di + 6, dj + 6] for _, _, di, dj in keys], dim=-1)
            weights = logits.softmax(-1)
            out[:, y, z] = sum(weights[..., n, None] * v[:, i, j] for n, (i, j, _, _) in enumerate(keys))
    return F.linear(out.flatten(3), mixer.proj.weight, mixer.proj.bias)


def _partners(position: int, length: int, interval: int | str) -> list[tuple[int, int]]:
    """Positions of the same group on one axis, with their offset from `position` in tokens of the group."""
    if interval == 1:
        return [(i, i - position) for i in range(length) if i // 7 == position // 7]
    step = -(-length // 7)
    return [(i, i // step - position // step) for i in range(length) if i % step == position % step]


def test_zero_padding_is_davits_rule() -> None:
    """The map is extended by zeros before the projection, so padding takes part as the projection's bias."""
    mixer = WindowAttention(32, head_dim=16, size=(7, 7), pad="zeros").double()
    x = torch.randn(1, 9, 11, 32, dtype=torch.float64)
    padded = mixer(F.pad(x, (0, 0, 0, 3, 0, 5)))
    torch.testing.assert_close(mixer(x), padded[:, :9, :11])


@pytest.mark.parametrize("size", [(64, 64), (97, 211)])
def test_an_empty_batch_gives_empty_results(family: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert MODELS[family](torch.zeros(0, 3, *size)).shape == (0, 11)


def _attend_by_coordinates(mixer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """The mixer without partition or padding: every pair of positions, masked by whether they share a group."""
    (height, width), (h, w) = x.shape[1:3], mixer.size
    ih, iw = (-(-height // h), -(-width // w)) if mixer.interval == "grid" else (1, 1)
    y, z = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    group = torch.stack([y // (h * ih), y % ih, z // (w * iw), z % iw], dim=1)
    together = (group[:, None] == group[None]).all(-1)
    dy, dz = ((t[None, :] - t[:, None]).clamp(1 - n, n - 1) + n - 1 for t, n in ((y // ih % h, h), (z // iw % w, w)))
    offsets = mixer.pos_bias.offsets(mixer.size, x).unflatten(1, (2 * h - 1, 2 * w - 1))
    qkv = F.linear(x, mixer.qkv.weight, mixer.qkv.bias).flatten(1, 2)
    q, k, v = qkv.unflatten(-1, (3, -1, mixer.head_dim)).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) * mixer.head_dim**-0.5 + offsets[:, dy, dz]
    out = logits.masked_fill(~together, float("-inf")).softmax(-1) @ v
    return F.linear(out.transpose(1, 2).flatten(2), mixer.proj.weight, mixer.proj.bias).unflatten(1, (height, width))


@pytest.mark.parametrize("name", ["maxvit_rmlp_pico_rw_256", "maxvit_tiny_tf_224"])
@pytest.mark.parametrize("size", [(97, 211), (64, 30), (120, 121)])
def test_whole_models_equal_masked_brute_force(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.create_model(name, num_classes=11).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    images = golden.images(2, *size)
    with torch.inference_mode():
        last, maps = model.forward_intermediates(images)
        monkeypatch.setattr(WindowAttention, "forward", _attend_by_coordinates)
        expected_last, expected_maps = model.forward_intermediates(images)
    for ours, expected in zip([last, *maps], [expected_last, *expected_maps], strict=True):
        assert (ours - expected).abs().max() < 1e-4 * expected.std()


def test_maxvit_keeps_its_window_at_any_size_unless_asked() -> None:
    assert zoo.create_model("maxvit_tiny_tf_224").stages[0].blocks[0].wattn.fn.size == (7, 7)
    asked = zoo.create_model("maxvit_tiny_tf_224", img_size=(256, 320))
    assert asked.stages[3].blocks[0].gattn.fn.size == (8, 10)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (80, 63)])
def test_same_padding_is_tensorflows(size: tuple[int, int]) -> None:
    """ceil(n / 2) outputs, with the odd zero after the map."""
    conv = nn.Conv2d(4, 6, 3, 2, least_padding(3, 2)).double()
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    total = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in size]
    padded = F.pad(x.permute(0, 3, 1, 2), (total[1] // 2, -(-total[1] // 2), total[0] // 2, -(-total[0] // 2)))
    expected = F.conv2d(padded, conv.weight, conv.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(convolve(conv, pad_same(x, conv)), expected)
    with torch.no_grad():
        torch.testing.assert_close(cpu.conv_norm(conv, nn.Identity(), x, same=True), expected)
