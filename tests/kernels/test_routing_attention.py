"""The specification of routing attention: against loops over regions, by gradcheck, at every case."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from zoo.kernels import native, region_routes, region_scores, routing_attention, use_backend
from zoo.kernels.exporting import export_safe
from zoo.kernels.routing_attention.cases import AWKWARD, MODELS, Case

BOUND = {torch.float32: 40, torch.bfloat16: 10, torch.float16: 10}
"""Largest error in units of the dtype's eps."""
PLANS = [((3, 3), 2), ((3, 4), 1), ((2, 2), 16), ((1, 3), 4), ((1, 1), 7)]
"""Regions of a map of 7 x 8 and how many to choose: alone in a tile, in one pass, and three that share tiles."""
SMALL = [case for case in (*MODELS, *AWKWARD) if case.shape[0] * case.shape[1] <= 200]


def inputs(case: Case, batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, *case.shape, 3, case.heads, case.head_dim, dtype=dtype).unbind(3)


def regions_of(shape: tuple[int, int], region: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """The positions of each region, row-major, also those beyond the map."""
    (height, width), (h, w) = shape, region
    corners = [(y, x) for y in range(0, height, h) for x in range(0, width, w)]
    return [[(y + i, x + j) for i in range(h) for j in range(w)] for y, x in corners]


def inside(positions: list[tuple[int, int]], shape: tuple[int, int]) -> list[tuple[int, int]]:
    return [(y, x) for y, x in positions if y < shape[0] and x < shape[1]]


def at(image: torch.Tensor, y: int, x: int) -> torch.Tensor:
    """One position of (H, W, heads, head_dim); zeros beyond the map."""
    return image[y, x] if y < image.shape[0] and x < image.shape[1] else torch.zeros_like(image[0, 0])


def brute_force(q, k, v, routes, region: tuple[int, int], scale: float | None = None) -> torch.Tensor:
    """Each region's queries against the positions of the regions that it is routed to."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(q)
    regions = regions_of(q.shape[1:3], region)
    for image in range(len(q)):
        for own, chosen in zip(regions, routes[image].tolist(), strict=True):
            seen = [position for other in chosen for position in regions[other]]
            keys, values = (torch.stack([at(t[image], *position) for position in seen]) for t in (k, v))
            for y, x in inside(own, q.shape[1:3]):
                weights = (scale * (q[image, y, x] * keys).sum(-1)).softmax(0)
                out[image, y, x] = (weights[..., None] * values).sum(0)
    return out


def loop_routes(q, k, region: tuple[int, int], topk: int) -> list[list[list[int]]]:
    """For each region the others by the product of means over the map, the best first, then by index."""
    chosen = []
    for image in zip(q, k, strict=True):
        own = [inside(region, q.shape[1:3]) for region in regions_of(q.shape[1:3], region)]
        means = [[torch.stack([t[y, x] for y, x in positions]).mean(0) for positions in own] for t in image]
        scores = [[(a * b).sum().item() for b in means[1]] for a in means[0]]
        chosen += [[sorted(range(len(row)), key=lambda other, row=row: (-row[other], other))[:topk] for row in scores]]
    return chosen


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
def test_the_exported_form_equals_the_reference(case: Case) -> None:
    tensors = case.tensors(2, dtype=torch.float64)
    expected = routing_attention(**tensors, **case.settings())
    with export_safe():
        torch.testing.assert_close(routing_attention(**tensors, **case.settings()), expected)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
@pytest.mark.usefixtures("one_thread")
def test_equals_brute_force(case: Case) -> None:
    q, k, v = inputs(case)
    routes = region_routes(q, k, case.region, case.topk)
    torch.testing.assert_close(
        routing_attention(q, k, v, routes, case.region), brute_force(q, k, v, routes, case.region)
    )


@pytest.mark.usefixtures("one_thread")
def test_scale_is_an_argument() -> None:
    q, k, v = inputs(AWKWARD[0])
    routes = region_routes(q, k, AWKWARD[0].region, 2)
    arguments = (q, k, v, routes, AWKWARD[0].region, 0.7)
    torch.testing.assert_close(routing_attention(*arguments), brute_force(*arguments))


@pytest.mark.parametrize("case", [*SMALL, MODELS[0]], ids=lambda c: c.name)
@pytest.mark.usefixtures("one_thread")
def test_routes_equal_a_loop(case: Case) -> None:
    q, k, _ = inputs(case)
    assert region_routes(q, k, case.region, case.topk).tolist() == loop_routes(q, k, case.region, case.topk)


def test_routes_are_the_best_scores() -> None:
    q, k = torch.randn(2, 2, 6, 8, 3, 4, dtype=torch.float64).unbind(0)
    scores = region_scores(q, k, (3, 2))
    means = [t.unflatten(2, (4, 2)).unflatten(1, (2, 3)).mean((2, 4)).flatten(1, 2).flatten(2) for t in (q, k)]
    torch.testing.assert_close(scores, torch.einsum("bic,bjc->bij", *means))
    torch.testing.assert_close(scores.gather(2, region_routes(q, k, (3, 2), 5)), scores.topk(5).values)


def test_means_leave_out_positions_beyond_the_map() -> None:
    """Over all 4 positions of the narrow region its mean key would be 1, less than the other's 1.5."""
    q = torch.ones(1, 2, 3, 1, 1)
    k = torch.tensor([1.5, 1.5, 2.0]).view(1, 1, 3, 1, 1).expand_as(q)
    assert region_routes(q, k, 2, 2).tolist() == [[[1, 0], [1, 0]]]


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
def test_of_equal_scores_the_first_region_wins(shape: tuple[int, int]) -> None:
    q = torch.ones(3, *shape, 2, 8)
    routes = region_routes(q, q, 2, 4)
    assert (routes == torch.arange(4)).all()
    for _ in range(3):
        assert torch.equal(region_routes(q, q, 2, 4), routes)


def test_fewer_regions_than_asked_for_gives_all() -> None:
    q, k, v = inputs(AWKWARD[3])
    routes = region_routes(q, k, (2, 2), 9)
    assert (routes.sort().values == torch.arange(4)).all()
    one_region = torch.zeros(2, 1, 1, dtype=torch.long)
    torch.testing.assert_close(
        routing_attention(q, k, v, routes, 2), routing_attention(q, k, v, one_region, AWKWARD[3].shape)
    )


def test_routes_carry_no_gradient() -> None:
    q, k, _ = (t.requires_grad_() for t in inputs(AWKWARD[0]))
    routes = region_routes(q, k, AWKWARD[0].region, 2)
    assert routes.dtype == torch.long
    assert not routes.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_routes_are_chosen_in_single_precision(dtype: torch.dtype) -> None:
    q, k, _ = inputs(MODELS[1], dtype=dtype)
    assert torch.equal(region_routes(q, k, 4, 4), region_routes(q.float(), k.float(), 4, 4))


def test_routes_are_the_same_under_autocast() -> None:
    """Means have more digits than bfloat16, in which autocast would multiply them."""
    q, k, _ = inputs(MODELS[1], batch=8, dtype=torch.bfloat16)
    call = torch.compile(region_routes, fullgraph=True, backend="aot_eager")
    scores, routes = region_scores(q, k, 4), region_routes(q, k, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(region_scores(q, k, 4), scores, rtol=0, atol=0)
        for found in (region_routes(q, k, 4, 4), call(q, k, 4, 4)):
            assert torch.equal(found, routes)
        assert region_scores(q.double(), k.double(), 4).dtype == torch.float64


def test_positions_beyond_the_map_take_part_as_zeros() -> None:
    """Equal logits and values of one: the output is the part of the region that lies on the map."""
    q = torch.zeros(1, 3, 3, 1, 8)
    routes = torch.arange(4).view(1, 4, 1)
    out = routing_attention(q, q, torch.ones_like(q), routes, 2)
    expected = torch.tensor([[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 0.25]])
    torch.testing.assert_close(out, expected[None, :, :, None, None].expand_as(q))


LOTS = ("at random, some twice", "one region by all", "one region by all, and only that")


@pytest.mark.parametrize(
    ("backend", "lot", "region", "topk"),
    [
        *(("native", lot, *plan) for plan in PLANS for lot in LOTS),
        *(("triton", LOTS[i % 3], *plan) for i, plan in enumerate(PLANS)),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_any_routes(backend: str, lot: str, region: tuple[int, int], topk: int) -> None:
    """A region may be chosen many times, even by one region, and another never."""
    regions = len(regions_of((7, 8), region))
    routes = torch.randint(0 if lot.endswith("that") else 1, 1 if lot.endswith("that") else regions, (2, regions, topk))
    if lot.startswith("one"):
        routes[:, :, 0] = 0
    assert_equals_the_reference(backend, *torch.randn(4, 2, 7, 8, 2, 8), routes=routes, region=region)


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize(("region", "topk"), [((3, 3), 2), ((3, 4), 1), ((1, 3), 4)])
@pytest.mark.usefixtures("one_thread")
def test_logits_far_below_zero(backend: str, region: tuple[int, int], topk: int) -> None:
    """Rows that fill a tile up have logits of zero, which would be overwhelming if they took part."""
    q, k, v, weights = torch.randn(4, 2, 6, 12, 1, 8)
    regions = len(regions_of((6, 12), region))
    routes = torch.randint(0, regions, (2, regions, topk))
    assert_equals_the_reference(backend, q + 8, k - 8, v, weights, routes=routes, region=region, bound=2e-3)


def assert_equals_the_reference(
    backend: str, *tensors: torch.Tensor, routes: torch.Tensor, region: tuple[int, int], bound: float = 1e-5
) -> None:
    """The output for q, k and v, and their gradients for a weighting of it, in single precision."""
    if backend == "native" and native.why_not():
        pytest.fail(native.why_not())
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    results = []
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        q, k, v, weights = (t.to(device, dtype, copy=True).requires_grad_() for t in tensors)
        with use_backend(name):
            out = routing_attention(q, k, v, routes.to(device), region)
            results.append([out, *torch.autograd.grad((out * weights).sum(), (q, k, v))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("batch", "regions", "topk"), [(3, 49, 1), (2, 5, 9), (1, 130, 3)])
def test_lists_of_choosers(batch: int, regions: int, topk: int) -> None:
    """They hold every choice in order, and the work that they make is told group by group, the longest first."""
    choosers = import_module("zoo.kernels.routing_attention.triton_lists").choosers
    routes = torch.randint(0, regions, (batch, regions, topk), device="cuda" if torch.cuda.is_available() else "cpu")
    lists, work = (t.cpu() for t in choosers(routes))
    chosen, order = routes.cpu().flatten(1).sort(dim=1, stable=True)
    assert torch.equal(lists.long(), order // topk)
    lengths = work[..., 2]
    assert (lengths[:, 1:] <= lengths[:, :-1]).all()
    for image, entries in enumerate(work.view(batch, -1, 3).tolist()):
        entries = sorted(entry for entry in entries if entry[0] >= 0)
        assert [region for region, _, _ in entries] == list(range(regions))
        for region, first, length in entries:
            assert (chosen[image] == region).nonzero().flatten().tolist() == list(range(first, first + length))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_gradients(case: Case) -> None:
    q, k, v = (t.requires_grad_() for t in inputs(case, batch=1))
    routes = region_routes(q, k, case.region, case.topk)

    def call(q, k, v):
        return routing_attention(q, k, v, routes, case.region)

    assert torch.autograd.gradcheck(call, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("case", [*MODELS, *AWKWARD], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_follow_the_reference(case: Case, dtype: torch.dtype) -> None:
    q, k, v = inputs(case, batch=1, dtype=dtype)
    routes = region_routes(q, k, case.region, case.topk)
    out = routing_attention(q, k, v, routes, case.region)
    assert out.dtype == dtype
    expected = routing_attention(q.double(), k.double(), v.double(), routes, case.region)
    assert (out.double() - expected).abs().max() < BOUND[dtype] * torch.finfo(dtype).eps


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    q, k, v = inputs(AWKWARD[0], batch)
    routes = region_routes(q, k, (3, 4), 2)
    out = routing_attention(q, k, v, routes, (3, 4))
    assert routes.shape == (batch, 12, 2)
    assert out.shape == q.shape
    for image in range(batch):
        alone = [t[image : image + 1] for t in (q, k, v, routes)]
        assert torch.equal(region_routes(*alone[:2], (3, 4), 2), alone[3])
        torch.testing.assert_close(out[image : image + 1], routing_attention(*alone, (3, 4)))


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_any_strides(case: Case) -> None:
    packed = inputs(case)
    plain = [t.contiguous() for t in packed]
    routes = region_routes(*plain[:2], case.region, case.topk)
    expected = routing_attention(*plain, routes, case.region)
    for q, k, v in (packed, [t.transpose(0, 4).contiguous().transpose(0, 4) for t in packed]):
        assert torch.equal(region_routes(q, k, case.region, case.topk), routes)
        strided = routes.mT.contiguous().mT
        torch.testing.assert_close(routing_attention(q, k, v, strided, case.region), expected)


@pytest.mark.parametrize("case", AWKWARD, ids=lambda c: c.name)
def test_two_runs_are_equal(case: Case) -> None:
    q, k, v = inputs(case, dtype=torch.float32)
    routes = [region_routes(q, k, case.region, case.topk) for _ in range(2)]
    assert torch.equal(*routes)
    assert torch.equal(*(routing_attention(q, k, v, chosen, case.region) for chosen in routes))


def test_compiles_as_one_graph() -> None:
    q, k, v = inputs(AWKWARD[0])

    def call(q, k, v):
        return routing_attention(q, k, v, region_routes(q, k, (3, 4), 2), (3, 4))

    torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), call(q, k, v))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "expected 5: "),
        ({"k": torch.zeros(1, 5, 4, 1, 9)}, "must agree"),
        ({"k": torch.zeros(1, 4, 4, 1, 8)}, "must agree"),
        ({"v": torch.zeros(1, 5, 4, 1, 8, dtype=torch.float64)}, "must agree"),
        ({"v": torch.zeros(1, 5, 4, 1, 8, device="meta")}, "must agree"),
        ({"routes": torch.zeros(1, 4, 2).long()}, r"routes are \(1, 4, 2\), expected \(1, 6, topk\)"),
        ({"routes": torch.zeros(2, 6, 2).long()}, r"expected \(1, 6, topk\)"),
        ({"routes": torch.zeros(1, 6, 0).long()}, r"expected \(1, 6, topk\)"),
        ({"routes": torch.zeros(1, 6).long()}, r"expected \(1, 6, topk\)"),
        ({"region": 0}, "region is 0, expected one or two positive integers"),
        ({"region": (1, 2, 3)}, "region is .* expected one or two positive integers"),
    ],
)
def test_wrong_arguments(change: dict, words: str) -> None:
    tensor = torch.zeros(1, 5, 4, 1, 8)
    arguments = {"q": tensor, "k": tensor, "v": tensor, "routes": torch.zeros(1, 6, 2).long(), "region": 2} | change
    with pytest.raises(ValueError, match=words):
        routing_attention(**arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "expected 5: "),
        ({"k": torch.zeros(1, 5, 4, 2, 8)}, "must agree"),
        ({"region": (2, 0)}, "expected one or two positive integers"),
        ({"topk": 0}, "topk is 0, expected at least 1"),
    ],
)
def test_wrong_arguments_of_routes(change: dict, words: str) -> None:
    tensor = torch.zeros(1, 5, 4, 1, 8)
    with pytest.raises(ValueError, match=words):
        region_routes(**({"q": tensor, "k": tensor, "region": 2, "topk": 2} | change))
