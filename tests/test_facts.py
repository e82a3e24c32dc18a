"""What logits of random weights cannot see: every variant runs what its authors published, with their numbers.

A forward pass without data writes down each layer that runs, with its widths and settings. It is compared with tables
of the published architectures: the epsilon of every norm, the kind of every activation, heads and scale of every
attention, biases, kernels, hidden widths. DaViT and MaxViT have theirs in `test_config.py`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import zoo
import zoo.kernels
import zoo.nn.embeds
from zoo.config.catalog import family_of, load_config
from zoo.nn.backbone import Backbone
from zoo.nn.layers.norm import apply_norm
from zoo.nn.mixers import aggregated, cosine, global_attention, hilo, neighborhood, routing, window

NAMES = [name for name in zoo.list_models() if family_of(name) not in ("davit", "maxvit", "hybrid")]


class Facts(NamedTuple):
    """One variant: depth, width, heads and hidden width of the MLP in each stage; `more` is the family's own."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    more: Any


def wide(first: int) -> tuple[int, ...]:
    return (first, 2 * first, 4 * first, 8 * first)


NEAR, FAR, FARTHER = ((1, 1),) * 4, ((1, 8), (1, 4), (1, 2), (1, 1)), ((1, 13), (1, 6), (1, 3), (1, 1))
IN_TURN = ((1, 2), (2, 1)) * 2  # every second of twelve blocks, three at a time
NAT = {  # more: side of the window, dilation of even and odd blocks in each stage (None: global), layer scale
    "nat_mini": Facts((3, 4, 6, 5), wide(64), wide(2), wide(192), (7, NEAR, None)),
    "nat_tiny": Facts((3, 4, 18, 5), wide(64), wide(2), wide(192), (7, NEAR, None)),
    "nat_small": Facts((3, 4, 18, 5), wide(96), wide(3), wide(192), (7, NEAR, 1e-5)),
    "nat_base": Facts((3, 4, 18, 5), wide(128), wide(4), wide(256), (7, NEAR, 1e-5)),
    "dinat_mini": Facts((3, 4, 6, 5), wide(64), wide(2), wide(192), (7, FAR, None)),
    "dinat_tiny": Facts((3, 4, 18, 5), wide(64), wide(2), wide(192), (7, FAR, None)),
    "dinat_small": Facts((3, 4, 18, 5), wide(96), wide(3), wide(192), (7, FAR, None)),
    "dinat_base": Facts((3, 4, 18, 5), wide(128), wide(4), wide(256), (7, FAR, 1e-5)),
    "dinat_large": Facts((3, 4, 18, 5), wide(192), wide(6), wide(384), (7, FAR, None)),
    "dinat_large_384": Facts((3, 4, 18, 5), wide(192), wide(6), wide(384), (7, FARTHER, None)),
    "dinat_large_384_11x11": Facts((3, 4, 18, 5), wide(192), wide(6), wide(384), (11, FAR, None)),
    "dinat_s_tiny": Facts((2, 2, 6, 2), wide(96), wide(3), wide(384), (7, FAR, None)),
    "dinat_s_small": Facts((2, 2, 18, 2), wide(96), wide(3), wide(384), (7, FAR, None)),
    "dinat_s_base": Facts((2, 2, 18, 2), wide(128), wide(4), wide(512), (7, FAR, None)),
    "dinat_s_large": Facts((2, 2, 18, 2), wide(192), wide(6), wide(768), (7, FAR, None)),
    "dinat_s_large_384": Facts((2, 2, 18, 2), wide(192), wide(6), wide(768), (7, FARTHER, None)),
    "nat_isotropic_small": Facts((3,) * 4, (384,) * 4, (12,) * 4, (1536,) * 4, (7, NEAR, None)),
    "nat_isotropic_base": Facts((3,) * 4, (768,) * 4, (24,) * 4, (3072,) * 4, (7, NEAR, None)),
    "dinat_isotropic_small": Facts((3,) * 4, (384,) * 4, (12,) * 4, (1536,) * 4, (7, IN_TURN, None)),
    "dinat_isotropic_base": Facts((3,) * 4, (768,) * 4, (24,) * 4, (3072,) * 4, (7, IN_TURN, None)),
    "vitrpb_small": Facts((3,) * 4, (384,) * 4, (12,) * 4, (1536,) * 4, (14, None, None)),
    "vitrpb_base": Facts((3,) * 4, (768,) * 4, (24,) * 4, (3072,) * 4, (14, None, None)),
}
BIFORMER = {  # more: what lepe sees in the last stage, what is padded
    "biformer_tiny": Facts((2, 2, 8, 2), wide(64), (2, 4, 8, 8), wide(192), ("input", "input")),
    "biformer_small": Facts((4, 4, 18, 4), wide(64), (2, 4, 8, 8), wide(192), ("input", "input")),
    "biformer_base": Facts((4, 4, 18, 4), wide(96), (3, 6, 12, 8), wide(288), ("input", "input")),
    "biformer_stl": Facts((2, 2, 6, 2), wide(96), (3, 6, 12, 8), wide(384), ("input", "input")),
    "biformer_stl_nchw": Facts((2, 2, 6, 2), wide(96), (3, 6, 12, 8), wide(384), ("values", "projected")),
}
ALIKE, GROWING = ((7, 7, 7, 7), (8, 4, 2, 1), ((),) * 4), ((4, 4, 14, 7), (4, 2, 1, 1), ((), (), (2, 5, 8, 11, 14), ()))
CROSSFORMER = {  # more: side of the groups, interval in odd blocks, blocks with a cooling layer, in each stage
    "crossformer_tiny": Facts((1, 1, 8, 6), wide(64), wide(2), wide(256), ALIKE),
    "crossformer_small": Facts((2, 2, 6, 2), wide(96), wide(3), wide(384), ALIKE),
    "crossformer_base": Facts((2, 2, 18, 2), wide(96), wide(3), wide(384), ALIKE),
    "crossformer_large": Facts((2, 2, 18, 2), wide(128), wide(4), wide(512), ALIKE),
    "crossformer_pp_small": Facts((2, 2, 18, 2), wide(64), wide(2), wide(256), GROWING),
    "crossformer_pp_base": Facts((2, 2, 18, 2), wide(96), wide(3), wide(384), GROWING),
    "crossformer_pp_large": Facts((2, 2, 18, 2), wide(128), wide(4), wide(512), GROWING),
    "crossformer_pp_huge": Facts(
        (6, 6, 18, 2), wide(128), wide(4), wide(512), (*GROWING[:2], ((2,), (2,), (2, 5, 8, 11, 14), ()))
    ),
}
LITV2 = {  # more: heads for low and for high frequencies in stage 2; the first two stages have no attention
    "litv2_s": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (10, 2)),
    "litv2_m": Facts((2, 2, 18, 2), wide(96), (0, 0, 12, 24), wide(384), (10, 2)),
    "litv2_b": Facts((2, 2, 18, 2), wide(128), (0, 0, 16, 32), wide(512), (14, 2)),
    "litv2_b_384": Facts((2, 2, 18, 2), wide(128), (0, 0, 16, 32), wide(512), (14, 2)),
    "litv2_s_alpha0_0": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (0, 12)),
    "litv2_s_alpha0_2": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (2, 10)),
    "litv2_s_alpha0_4": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (4, 8)),
    "litv2_s_alpha0_5": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (6, 6)),
    "litv2_s_alpha0_7": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (8, 4)),
    "litv2_s_alpha0_9": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (10, 2)),
    "litv2_s_alpha1_0": Facts((2, 2, 6, 2), wide(96), (0, 0, 12, 24), wide(384), (12, 0)),
}
LAST_GLOBAL = (8, 4, 2, None)
TRANSNEXT = {  # more: side of the images in training and in pre-training, pool ratio in each stage
    "transnext_micro": Facts((2, 2, 15, 2), wide(48), wide(2), (256, 512, 512, 1024), (224, 224, LAST_GLOBAL)),
    "transnext_tiny": Facts((2, 2, 15, 2), wide(72), wide(3), (384, 768, 768, 1536), (224, 224, LAST_GLOBAL)),
    "transnext_small": Facts((5, 5, 22, 5), wide(72), wide(3), (384, 768, 768, 1536), (224, 224, LAST_GLOBAL)),
    "transnext_small_384": Facts((5, 5, 22, 5), wide(72), wide(3), (384, 768, 768, 1536), (384, 224, LAST_GLOBAL)),
    "transnext_base": Facts((5, 5, 23, 5), wide(96), wide(4), (512, 1024, 1024, 2048), (224, 224, LAST_GLOBAL)),
    "transnext_base_384": Facts((5, 5, 23, 5), wide(96), wide(4), (512, 1024, 1024, 2048), (384, 224, LAST_GLOBAL)),
    "transnext_micro_AAAA_256": Facts(
        (2, 2, 15, 2), wide(48), wide(2), (256, 512, 512, 1024), (256, 256, (16, 8, 4, 2))
    ),
}
FACTS = NAT | BIFORMER | CROSSFORMER | LITV2 | TRANSNEXT


# What runs, in words.

LN5, LN6, BN = "layer norm 1e-05", "layer norm 1e-06", "batch norm 1e-05"


def linear(dim_in: int, dim: int, bias: object = True) -> str:
    return f"linear {dim_in}>{dim}" + " without bias" * (bias is None)


def conv(kernel: int, stride: int, dim_in: int, dim: int, bias: object = True, groups: int = 1) -> str:
    name = "conv" if groups == 1 else "depthwise" if groups == dim else f"conv in {groups} groups"
    return f"{name} {kernel}/{stride} {dim_in}>{dim}" + " without bias" * (bias is None)


def depthwise(kernel: int, dim: int) -> str:
    return conv(kernel, 1, dim, dim, groups=dim)


def attend(kernel: str, heads: int, head_dim: int, scale: float | None = None, **more: object) -> str:
    details = [f"{key} {value}" for key, value in more.items()]
    return ", ".join([f"{kernel}: {heads} heads of {head_dim}, scale {scale or head_dim**-0.5:.5f}", *details])


LAYERS = {
    F.linear: lambda x, w, b=None: linear(w.shape[1], w.shape[0], b),
    F.conv2d: lambda x, w, b, stride, padding, dilation, groups: conv(
        w.shape[2], stride[0], x.shape[1], w.shape[0], b, groups
    ),
    F.layer_norm: lambda x, *_, eps, **__: f"layer norm {eps:g}",
    F.batch_norm: lambda x, *_, eps, **__: f"batch norm {eps:g}",
    F.gelu: lambda x, approximate="none": "gelu" if approximate == "none" else f"gelu {approximate}",
    F.relu: lambda x, inplace=False: "relu",
    F.silu: lambda x, inplace=False: "silu",
    F.avg_pool2d: lambda x, size: f"pool by {size}",
    F.adaptive_avg_pool2d: lambda x, size: f"pool to {size}",
}


class Trace(TorchFunctionMode):
    """Writes down every layer and every kernel that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in LAYERS:
            self.words.append(LAYERS[func](*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def take(self) -> list[str]:
        words, self.words = self.words, []
        return words

    def stand_in(self, name: str) -> Any:
        """What runs instead of a kernel: it says how it was called and gives an empty result."""
        signature = inspect.signature(getattr(zoo.kernels, name))

        def run(*args: Any, **kwargs: Any) -> torch.Tensor:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            given, x = call.arguments, args[0]
            if name == "deform_conv":
                dim, _, kernel, _ = given["weight"].shape
                self.words.append("deformable " + conv(kernel, given["stride"], x.shape[3], dim, given["bias"]))
                return x.new_empty(*given["offset"].shape[:3], dim)
            if name == "region_routes":
                regions = [n / m for n, m in zip(x.shape[1:3], given["region"], strict=True)]
                self.words.append("best {} of {:g}x{:g} regions".format(given["topk"], *regions))
                return x.new_empty(1, 49, given["topk"], dtype=torch.long)
            more = {key: given[key] for key in ("size", "dilation") if name == "neighborhood_attention"}
            more |= {"tokens": given["size"][0] * given["size"][1]} if name == "window_attention" else {}
            more |= {"bias": "added"} if given.get("bias") is not None else {}
            self.words.append(attend(name.removesuffix("_attention"), *x.shape[3:], given.get("scale", 1.0), **more))
            return torch.empty_like(x)

        return run


@functools.cache
def build(name: str) -> Backbone:
    with torch.device("meta"):
        return Backbone(load_config(name))


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Trace:
    trace = Trace()
    for module in (aggregated, cosine, global_attention, hilo, neighborhood, routing, window, zoo.nn.embeds):
        for name in set(zoo.kernels.__all__) & set(vars(module)):
            monkeypatch.setattr(module, name, trace.stand_in(name))
    return trace


# What was published, in the same words.


def embed(name: str, dims: tuple[int, ...], s: int) -> list[str]:
    """The stem (s = 0), and what stands before stage s."""
    dim_in, dim = dims[s - 1] if s else 3, dims[s]
    patches = {"dinat_s": 4, "nat_isotropic": 16, "litv2": 4}
    family = family_of(name)
    if s == 0 and family in patches:
        return [conv(patches[family], patches[family], 3, dim), LN5]
    if s == 0 and family == "crossformer":
        widths = zip((4, 8, 16, 32), (2, 4, 8, 8), strict=True)
        return [*(conv(kernel, 4, 3, dim // part) for kernel, part in widths), LN5]
    stem, downsample = {
        "nat": ([conv(3, 2, 3, dim // 2), conv(3, 2, dim // 2, dim), LN5], [conv(3, 2, dim_in, dim, None), LN5]),
        "dinat_s": ([], [LN5, linear(4 * dim_in, dim, None)]),
        "nat_isotropic": ([], []),
        "biformer": (
            [conv(3, 2, 3, dim // 2), BN, "gelu", conv(3, 2, dim // 2, dim), BN],
            [conv(3, 2, dim_in, dim), BN],
        ),
        "biformer_stl": ([conv(4, 4, 3, dim), BN], [BN, conv(2, 2, dim_in, dim)]),
        "crossformer": ([], [LN5, conv(2, 2, dim_in, dim_in), conv(4, 2, dim_in, dim_in)]),
        "litv2": ([], [conv(2, 2, dim_in, 8), "deformable " + conv(2, 2, dim_in, dim), BN, "gelu"]),
        "transnext": ([conv(7, 4, 3, dim), LN5], [LN6, conv(3, 2, dim_in, dim), LN5]),
    }[{"dinat": "nat"}.get(family, "biformer_stl" if "stl" in name else family)]
    return downsample if s else stem


def mlp(norm: str, dim: int, hidden: int) -> list[str]:
    return [norm, linear(dim, hidden), "gelu", linear(hidden, dim)]


def nat_block(facts: Facts, s: int, b: int) -> list[str]:
    dim, heads = facts.dims[s], facts.heads[s]
    side, dilations, _ = facts.more
    attention = attend("global", heads, 32, bias="added")
    if dilations is not None:
        dilation = dilations[s][b % 2]
        attention = attend("neighborhood", heads, 32, size=(side,) * 2, dilation=(dilation,) * 2, bias="added")
    return [LN5, linear(dim, 3 * dim), attention, linear(dim, dim), *mlp(LN5, dim, facts.hidden[s])]


def biformer_block(facts: Facts, s: int, b: int) -> list[str]:
    dim, hidden = facts.dims[s], facts.hidden[s]
    words = [LN6, depthwise(5, dim), linear(dim, dim), *mlp(LN6, dim, hidden)]
    words += [depthwise(3, dim)] * (hidden == 3 * dim)  # the position encoding, which the STL variants lack
    if s == 3:
        return [*words, linear(dim, 3 * dim, None), attend("global", 8, dim // 8)]
    routes = f"best {(1, 4, 16)[s]} of 7x7 regions"
    return [*words, linear(dim, 3 * dim), routes, attend("routing", facts.heads[s], 32, dim**-0.5)]


def crossformer_block(facts: Facts, s: int, b: int) -> list[str]:
    dim, heads = facts.dims[s], facts.heads[s]
    side, _, cool = (value[s] for value in facts.more)
    hidden = dim // 16
    words = [LN5, linear(dim, 3 * dim), attend("window", heads, 32, tokens=side**2, bias="added"), linear(dim, dim)]
    words += [linear(2, hidden), *[LN5, "relu", linear(hidden, hidden)] * 2, LN5, "relu", linear(hidden, heads)]
    return words + mlp(LN5, dim, facts.hidden[s]) + [depthwise(3, dim), LN5] * (b in cool)


def litv2_block(facts: Facts, s: int, b: int) -> list[str]:
    dim, hidden = facts.dims[s], facts.hidden[s]
    words = [*mlp(LN5, dim, hidden), depthwise(3, hidden)]
    if s == 3:
        words += [LN5, linear(dim, 3 * dim), attend("global", facts.heads[s], 32), linear(dim, dim)]
    if s == 2:
        low, high = facts.more
        lo, hi = 32 * low, 32 * high
        low_words = [linear(dim, lo), linear(dim, 2 * lo), attend("global", low, 32), linear(lo, lo), "pool by (2, 2)"]
        high_words = [linear(dim, 3 * hi), attend("window", high, 32, tokens=4), linear(hi, hi)]
        words += [LN5] + low_words * (low > 0) + high_words * (high > 0)
    return words


def transnext_block(facts: Facts, s: int, b: int) -> list[str]:
    dim, heads, hidden = facts.dims[s], facts.heads[s], facts.hidden[s]
    side, pool = facts.more[0] // 2 ** (s + 2), facts.more[2][s]
    words = [LN6, linear(2, 512), "relu", linear(512, heads), linear(dim, dim)]
    words += [LN6, linear(dim, 2 * hidden), depthwise(3, hidden), "gelu", linear(hidden, dim)]
    if pool is None:
        return [*words, linear(dim, 3 * dim), attend("global", heads, 24, 1.0, bias="added")]
    pooled = [linear(dim, dim), "gelu", f"pool to {(side // pool,) * 2}", LN5, linear(dim, 2 * dim)]
    return [*words, linear(dim, dim), linear(dim, 2 * dim), *pooled, attend("aggregated", heads, 24, 1.0)]


BLOCKS = [
    (NAT, nat_block),
    (BIFORMER, biformer_block),
    (CROSSFORMER, crossformer_block),
    (LITV2, litv2_block),
    (TRANSNEXT, transnext_block),
]


def test_every_variant_has_facts() -> None:
    assert sorted(FACTS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_published_ones(name: str, trace: Trace) -> None:
    """The order inside a block is left to the goldens."""
    facts = FACTS[name]
    (block,) = (block for table, block in BLOCKS if name in table)
    ran, published = {}, {}
    model = build(name).train()
    with trace, torch.device("meta"):
        x = torch.empty(2, *model.config.img_size, 3)
        for s, stage in enumerate(model.stages):
            x = stage.embed(x)
            ran[f"stages.{s}.embed"], published[f"stages.{s}.embed"] = trace.take(), embed(name, facts.dims, s)
            for b, module in enumerate(stage.blocks):
                x = module(x)
                ran[f"stages.{s}.blocks.{b}"] = sorted(trace.take())
            x = apply_norm(stage.norm, x)
            published |= {f"stages.{s}.blocks.{b}": sorted(block(facts, s, b)) for b in range(facts.depths[s])}
        model.head(apply_norm(model.norm, x).permute(0, 3, 1, 2))
    norm = {"biformer": BN, "transnext": LN6}.get(model.config.family, LN5)
    assert ran == published
    assert trace.take() == [norm, linear(facts.dims[-1], 1000)]


@pytest.mark.parametrize("name", NAMES)
def test_layer_scale_and_branches_without_a_residual(name: str) -> None:
    scale = FACTS[name].more[2] if name in NAT else None
    model, config = build(name), load_config(name)
    for stage, parts in zip(model.stages, config.stages, strict=True):
        for block, branches in zip(stage.blocks, parts.blocks, strict=True):
            for (key, branch), part in zip(block.named_children(), branches, strict=True):
                assert part.layer_scale == scale
                assert (branch.gamma is None) == (scale is None)
                assert (branch.shortcut is None) == (key == "cool")
                assert branch.shortcut is None or isinstance(branch.shortcut, nn.Identity)
                assert part.drop_path == (key not in ("cool", "cpe"))


@pytest.mark.parametrize("name", CROSSFORMER)
def test_crossformer_groups_and_cooling_layers(name: str) -> None:
    facts = FACTS[name]
    for s, stage in enumerate(build(name).stages):
        size, interval, cool = (value[s] for value in facts.more)
        mixers = [block.attn.fn for block in stage.blocks]
        assert [m.size for m in mixers] == [(size, size)] * facts.depths[s]
        assert [m.interval for m in mixers] == [(1, interval)[b % 2] for b in range(facts.depths[s])]
        assert all(m.shrink and m.pad == "masked" for m in mixers)
        assert tuple(b for b, block in enumerate(stage.blocks) if hasattr(block, "cool")) == cool
        assert all(list(dict(block.named_children()))[-1] == "cool" for block in stage.blocks if hasattr(block, "cool"))


@pytest.mark.parametrize("name", BIFORMER)
def test_biformer_padding_and_lepe(name: str) -> None:
    lepe, pad = FACTS[name].more
    *routed, last = [[block.attn.fn for block in stage.blocks] for stage in build(name).stages]
    assert {(m.regions, m.pad) for mixers in routed for m in mixers} == {(7, pad)}
    assert {m.lepe_of for m in last} == {lepe}


@pytest.mark.parametrize("name", TRANSNEXT)
def test_transnext_sizes_in_training(name: str) -> None:
    trained, pretrained, _ = FACTS[name].more
    for s, stage in enumerate(build(name).stages):
        for mixer in (block.attn.fn for block in stage.blocks):
            assert mixer.trained == (trained // 2 ** (s + 2),) * 2
            assert mixer.cpb.pretrained == (pretrained // 2 ** (s + 2),) * 2
            assert mixer.cpb.trained is None
            assert getattr(mixer, "fixed_pool_size", None) is None
            assert not hasattr(mixer, "norm") or mixer.norm.eps == 1e-5  # of the pooled branch
