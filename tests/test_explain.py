"""What `zoo explain` says, held against softmaxes and positions written out here."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from typer.testing import CliRunner

import zoo
from zoo.cli.main import app
from zoo.explain import explain, grad_cam, receptive_field, rollout
from zoo.explain.watch import Watched, branches, watch
from zoo.kernels.recording import Call
from zoo.nn.backbone import Backbone
from zoo.vision.images import as_input

PHOTO = str(get_sample_data("grace_hopper.jpg", asfileobj=False))
IMAGE = Image.open(PHOTO).convert("RGB").resize((211, 97))
POINT = (130, 41)
SMALL = "maxvit_rmlp_pico_rw_256"
CONVOLUTIONS = {"zoo.nn.mixers.mbconv", "zoo.nn.mixers.dwconv"}

pytestmark = pytest.mark.usefixtures("one_thread")


def watched(model: Backbone, image: Image.Image = IMAGE) -> list[Watched]:
    return watch(model, as_input(model, image), [name for name, _, _ in branches(model)])


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def near(length: int, query: int, size: int, dilation: int) -> list[int]:
    """The `size` positions of the query's remainder that lie nearest, all inside."""
    same = range(query % dilation, length, dilation)
    first = min(max(query // dilation - size // 2, 0), len(same) - size)
    return list(same[first : first + size])


def grouped(length: int, query: int, size: int, interval: int) -> list[int]:
    whole = size * interval
    return [p for p in range(length) if p // whole == query // whole and p % interval == query % interval]


def keys_and_bias(call: Call, query: tuple[int, int]) -> tuple[list[tuple[int, int]], torch.Tensor | float]:
    """Positions of the keys of one query, and (heads, keys) of position biases."""
    given = call.arguments
    shape, bias = tuple(given["k"].shape[1:3]), given.get("bias")
    if call.name == "neighborhood_attention":
        size, dilation = pair(given["size"]), pair(given["dilation"])
        keys = list(product(*map(near, shape, query, size, dilation)))
        steps = [[(k - q) // d + s - 1 for k, q, d, s in zip(key, query, dilation, size, strict=True)] for key in keys]
        return keys, bias[:, [y for y, _ in steps], [x for _, x in steps]]
    if call.name == "window_attention":
        size, interval = pair(given["size"]), pair(given["interval"])
        keys = list(product(*map(grouped, shape, query, size, interval)))
        token = [[p % (s * i) // i for p, s, i in zip(key, size, interval, strict=True)] for key in [query, *keys]]
        own, *others = [y * size[1] + x for y, x in token]
        return keys, 0.0 if bias is None else bias[:, own, others]
    if call.name == "routing_attention":
        (h, w), columns = given["region"], -(-shape[1] // given["region"][1])
        routes = given["routes"][0, query[0] // h * columns + query[1] // w].tolist()
        corners = [(route // columns * h, route % columns * w) for route in routes]
        return [(y + i, x + j) for y, x in corners for i in range(h) for j in range(w)], 0.0
    row = query[0] * given["q"].shape[2] + query[1]
    return list(product(range(shape[0]), range(shape[1]))), 0.0 if bias is None else bias[:, row]


def logits(call: Call, query: tuple[int, int], keys: list[tuple[int, int]], name: str = "k") -> torch.Tensor:
    """(heads, keys)."""
    given = call.arguments
    k = torch.stack([given[name][0, y, x] for y, x in keys], dim=1)
    scale = given.get("scale", 1.0)
    return (given["q"][0][query][:, None] * k).sum(-1) * (k.shape[-1] ** -0.5 if scale is None else scale)


def expected(call: Call, query: tuple[int, int]) -> list[torch.Tensor]:
    """The maps of weights (heads, h, w) of one query, zero wherever it does not look."""
    given = call.arguments
    if call.name != "aggregated_attention":
        keys, bias = keys_and_bias(call, query)
        return [on_a_map(keys, (logits(call, query, keys) + bias).softmax(-1), given["k"])]
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    height, width = given["k"].shape[1:3]
    inside = [i for i, (dy, dx) in enumerate(around) if 0 <= query[0] + dy < height and 0 <= query[1] + dx < width]
    keys = [(query[0] + around[i][0], query[1] + around[i][1]) for i in inside]
    pooled = list(product(*map(range, given["pooled_k"].shape[1:3])))
    local = logits(call, query, keys) + given["local_bias"][:, inside]
    bias = given["pooled_bias"][:, query[0] * width + query[1]]
    weights = torch.cat([local, logits(call, query, pooled, "pooled_k") + bias], dim=1).softmax(-1)
    near, far = weights.split([len(keys), len(pooled)], dim=1)
    extra = given["extra"][0][query][:, inside]
    parts = [(keys, near, given["k"]), (pooled, far, given["pooled_k"]), (keys, extra, given["k"])]
    return [on_a_map(*part) for part in parts]


def on_a_map(keys: list[tuple[int, int]], weights: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    full = weights.new_zeros(k.shape[3], *k.shape[1:3])
    for i, key in enumerate(keys):
        full[(slice(None), *key)] = weights[:, i]
    return full


@pytest.fixture
def model(shallow: Backbone, family: str) -> Backbone:
    """Each family in turn; the smallest CrossFormer is too shallow for long distances."""
    if family != "crossformer":
        return shallow
    depths = {f"stages.{i}.depth": 2 - i % 2 for i in range(4)}
    return zoo.create_model("crossformer_small", num_classes=10, **depths).eval()


def test_every_attention_layer_is_explained_and_its_weights_sum_to_one(model: Backbone) -> None:
    found = explain(model, IMAGE, POINT)
    mixers = [(name, type(branch.fn).__module__) for name, branch, _ in branches(model)]
    attention = [name for name, room in mixers if room.startswith("zoo.nn.mixers.") and room not in CONVOLUTIONS]
    assert [layer.name for layer in found.layers] == attention
    for layer in found.layers:
        sums = [p.weights.sum(-1 if p.name == "channels" else (1, 2)) for p in layer.parts if p.name != "added"]
        if layer.mixer == "aggregated":
            sums = [sums[0] + sums[1]]
        for total in sums:
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)
        assert all((part.weights >= 0).all() for part in layer.parts if part.name != "added")


def test_weights_and_positions_are_those_of_a_softmax_written_out(model: Backbone) -> None:
    for layer, seen in zip(explain(model, IMAGE, POINT).layers, watched(model), strict=True):
        assert layer.name == seen.name
        assert layer.query == tuple(min(p // seen.stride, n - 1) for p, n in zip(POINT[::-1], seen.shape, strict=True))
        if layer.mixer == "channel":
            continue
        maps = [weights for call in seen.calls for weights in expected(call, layer.query)]
        for part, weights in zip(layer.parts, maps, strict=True):
            assert torch.equal(part.weights != 0, weights != 0), (layer.name, part.name)
            torch.testing.assert_close(part.weights, weights, atol=1e-6, rtol=1e-4)


def test_weights_rebuild_what_the_fast_kernels_give(model: Backbone) -> None:
    for layer, seen in zip(explain(model, IMAGE, POINT).layers, watched(model), strict=True):
        parts = list(layer.parts)
        for call in seen.calls:
            given = call.arguments
            names = {"channel_attention": ["q"], "aggregated_attention": ["v", "pooled_v", "v"]}.get(call.name, ["v"])
            rebuilt = sum(read(parts.pop(0), given[name][0], layer.query) for name in names)
            out = call.again()[0][layer.query]
            torch.testing.assert_close(rebuilt, out, atol=1e-5 * out.abs().max().item(), rtol=1e-4)
        assert not parts


def read(part, values: torch.Tensor, query: tuple[int, int]) -> torch.Tensor:
    """(heads, head_dim): what a part takes of its values."""
    if part.name == "channels":
        return torch.einsum("gij,gj->gi", part.weights, values[query])
    return torch.einsum("nhw,hwnd->nd", part.weights, values)


def test_channels_are_a_softmax_over_positions_products() -> None:
    model = zoo.create_model("davit_tiny", **{"stages.2.depth": 2}).eval()
    layers = {layer.name: layer for layer in explain(model, IMAGE, POINT).layers}
    (seen,) = watch(model, as_input(model, IMAGE), ["stages.1.blocks.1.attn"])
    k, v = (seen.calls[0].arguments[name][0].flatten(0, 1) for name in ("k", "v"))
    logits = torch.einsum("pgi,pgj->gij", k, v) * k.shape[-1] ** -0.5
    (part,) = layers[seen.name].parts
    torch.testing.assert_close(part.weights, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    row, column = layers[seen.name].query
    torch.testing.assert_close(part.likeness[:, row, column], torch.ones(len(part.weights)))
    assert part.likeness.abs().max() < 1 + 1e-5
    assert part.strength.argmax() == part.strongest


def test_routed_regions_come_best_first_with_their_scores() -> None:
    model = zoo.create_model("biformer_tiny").eval()
    (layer,) = explain(model, IMAGE, POINT, "stages.1.blocks.1.attn").layers
    (seen,) = watch(model, as_input(model, IMAGE), [layer.name])
    q, k = (seen.calls[0].arguments[name][0].flatten(2) for name in "qk")
    (part,) = layer.parts
    assert len(part.regions) == 4
    h, w = (n // 7 for n in q.shape[:2])
    top, left = layer.query[0] // h * h, layer.query[1] // w * w
    mean = q[top : top + h, left : left + w].mean((0, 1))
    scores = [(mean * k[t:b, a:z].mean((0, 1))).sum() for t, a, b, z in (region.box for region in part.regions)]
    torch.testing.assert_close(torch.tensor([region.score for region in part.regions]), torch.stack(scores))
    assert scores == sorted(scores, reverse=True)


def test_names_and_places_of_parts() -> None:
    depths = {f"stages.{i}.depth": 2 for i in range(4)}

    def parts(name: str, layer: str) -> list[tuple]:
        (found,) = explain(zoo.create_model(name, **depths).eval(), IMAGE, POINT, layer).layers
        return [(part.name, part.detail, part.stride) for part in found.parts]

    assert parts(SMALL, "stages.0.blocks.0.gattn") == [("grid", "8 x 8, every 4 x 7", (4, 4))]
    assert parts("crossformer_small", "stages.0.blocks.1.attn") == [("long distance", "7 x 7, every 8", (4, 4))]
    assert parts("crossformer_small", "stages.0.blocks.0.attn") == [("short distance", "7 x 7", (4, 4))]
    assert parts("dinat_mini", "stages.1.blocks.1.attn") == [("neighborhood", "7 x 7, dilation 4", (8, 8))]
    assert parts("litv2_s", "stages.2.blocks.0.attn") == [
        ("high frequencies", "2 x 2", (16, 16)),
        ("low frequencies", "3 x 7 map", (32, 32)),
    ]


def test_keys_beyond_the_map_are_told() -> None:
    """On a map of 25 x 53 a window of 7 x 7 with dilation 8 needs 56 x 56."""
    (layer,) = explain(zoo.create_model("dinat_mini").eval(), IMAGE, POINT, "stages.0.blocks.1").layers
    (part,) = layer.parts
    assert part.inside == (25, 53)
    assert part.weights.shape[1:] == (56, 56)
    assert part.beyond == pytest.approx(part.weights[:, 25:].sum().item() / 2, abs=0.1)
    assert part.beyond > 0.5


def test_rollout_is_a_distribution(model: Backbone) -> None:
    found = rollout(model, IMAGE, POINT)
    assert found.weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found.weights >= 0).all()
    assert all(-(-n // found.stride) - n_map in (0, 1) for n, n_map in zip((97, 211), found.weights.shape, strict=True))


def test_rollout_is_the_product_of_all_layers() -> None:
    cut = {f"stages.{i}.depth": 1 for i in range(4)}
    model = zoo.create_model("nat_isotropic_small", **cut).eval()
    image = IMAGE.resize((160, 112))
    positions = list(product(range(7), range(10)))
    product_of_all = torch.eye(len(positions))
    for seen in watched(model, image):
        mean = torch.stack([expected(seen.calls[0], q)[0].mean(0).flatten() for q in positions])
        product_of_all = (torch.eye(len(positions)) + mean) / 2 @ product_of_all
    found = rollout(model, image, (79, 33))
    torch.testing.assert_close(found.weights.flatten(), product_of_all[positions.index((2, 4))], atol=1e-6, rtol=1e-4)


def test_receptive_field_ends_where_windows_and_kernels_end() -> None:
    """Three neighbourhoods of 7 x 7 reach 9 positions of 4 pixels each way, the stem 3 pixels further."""
    model = zoo.create_model("nat_mini", **{f"stages.{i}.depth": 1 for i in (1, 2, 3)}).eval()
    image = Image.open(PHOTO).convert("RGB").resize((160, 144))
    seen = receptive_field(model, image, (80, 72), stage=0, samples=2).gradient > 0
    rows, columns = (seen.any(axis).nonzero().flatten() for axis in (1, 0))
    assert (rows[0], rows[-1]) == (4 * (18 - 9) - 3, 4 * (18 + 9) + 3)
    assert (columns[0], columns[-1]) == (4 * (20 - 9) - 3, 4 * (20 + 9) + 3)
    assert seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float().mean() > 0.99


def test_receptive_field_estimates_the_mean_square_of_all_gradients() -> None:
    model = zoo.create_model(SMALL).eval()
    image = IMAGE.resize((64, 48))
    found = receptive_field(model, image, (33, 20), stage=0, samples=200)
    pixels = as_input(model, image).requires_grad_()
    level = model.forward_intermediates(pixels, [0], stop_early=True, intermediates_only=True)[0][0]
    features = level[:, 5, 8]
    squares = [torch.autograd.grad(f, pixels, retain_graph=True)[0][0].square() for f in features]
    exact = torch.stack(squares).mean(0).sqrt().sum(0)
    assert (found.gradient.sum() / exact.sum()).item() == pytest.approx(1, abs=0.1)


def test_grad_cam_is_a_map_of_the_picture(model: Backbone) -> None:
    found = grad_cam(model, IMAGE, label=3)
    assert found.weights.shape == (97, 211)
    assert 0 <= found.weights.min() <= found.weights.max() <= 1 + 1e-6
    assert (found.index, found.label) == (3, "class 3")


def test_the_model_is_left_as_it_was() -> None:
    model = zoo.create_model(SMALL, drop_path_rate=0.5).train()
    model.stages[1].eval()
    model.stages[0].requires_grad_(False)
    next(model.stages[2].parameters()).grad = gradient = torch.zeros_like(next(model.stages[2].parameters()))
    before = [(m.training, len(m._forward_hooks)) for m in model.modules()]
    wanted, state = [p.requires_grad for p in model.parameters()], {k: v.clone() for k, v in model.state_dict().items()}
    for method in (explain, rollout, receptive_field, grad_cam):
        method(model, IMAGE)
    model.stages[2].register_forward_pre_hook(lambda *_: 1 / 0)
    for method in (explain, rollout, receptive_field, grad_cam):
        with pytest.raises(ZeroDivisionError):
            method(model, IMAGE)
    assert [(m.training, len(m._forward_hooks)) for m in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert next(model.stages[2].parameters()).grad is gradient
    assert sum(p.grad is not None for p in model.parameters()) == 1


def test_wrapped_models_and_any_mode_explain_alike() -> None:
    model = zoo.create_model(SMALL).eval()
    pyramid = zoo.create_model(SMALL, features_only=True, checkpoint=model.state_dict())
    plain = explain(model, IMAGE, POINT)
    for wrapper in (torch.compile(model), torch.nn.DataParallel(model), pyramid):
        with torch.inference_mode():
            found = explain(wrapper, IMAGE, POINT)
        assert len(found.layers) == len(plain.layers)
        for own, other in zip(found.layers, plain.layers, strict=True):
            torch.testing.assert_close(own.parts[0].weights, other.parts[0].weights)
    half = explain(zoo.create_model(SMALL).to(torch.bfloat16), IMAGE, POINT)
    assert all(part.share == pytest.approx(1, abs=1e-5) for layer in half.layers for part in layer.parts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"point": (211, 3)}, "the point is 211,3, but the picture has 211 x 97 pixels"),
        ({"layer": "stages.2.blocks.0.watn"}, "did you mean 'stages.2.blocks.0.wattn'"),
        ({"layer": 7}, "unknown layer 7"),
        ({"layer": "stages.2.blocks.0.conv"}, "has no attention; the nearest that have: stages.2.blocks.0"),
    ],
)
def test_wrong_arguments(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explain(zoo.create_model(SMALL), IMAGE, **arguments)


def test_grad_cam_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no classifier"):
        grad_cam(zoo.create_model(SMALL, num_classes=0), IMAGE)
    with pytest.raises(ValueError, match="label is 1000, expected 0 to 999"):
        grad_cam(zoo.create_model(SMALL), IMAGE, 1000)
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"pip install 'vision-zoo\[explain\]'"):
        grad_cam(zoo.create_model(SMALL), IMAGE)


def run(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "160"})
    assert (result.exit_code != 0) == fails, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SMALL, []),
        ("davit_tiny", ["--point", "500,10", "--layer", "0", "--head", "1"]),
        ("biformer_tiny", ["--layer", "1"]),
        ("transnext_micro", ["--layer", "stages.1.blocks.0"]),
        (SMALL, ["--method", "rollout"]),
        (SMALL, ["--method", "receptive-field", "--layer", "1"]),
        (SMALL, ["--method", "grad-cam", "--label", "7"]),
    ],
)
def test_the_command_draws(tmp_path: Path, name: str, options: list[str]) -> None:
    path = tmp_path / "new" / "out.png"
    output = run(PHOTO, "-m", name, "-o", str(path), "--size", "160", *options)
    assert "weights are random" in output
    assert f"wrote {path}".replace("\n", "") in output.replace("\n", "")
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PHOTO, "-m", SMALL, "--point", "9999,1"], "outside the picture, which has 512 x 600 pixels"),
        ([PHOTO, "-m", SMALL, "--point", "here"], "expected two whole numbers x,y"),
        ([PHOTO, "-m", SMALL, "--head", "9", "--size", "64"], "has heads 0 to 0"),
        ([PHOTO, "-m", SMALL, "--method", "rollout", "--layer", "2"], "--method rollout has no --layer"),
        ([PHOTO, "-m", SMALL, "--method", "receptive-field", "--layer", "9"], "that of a stage: 0, 1, 2 or 3"),
        (["none.jpg", "-m", SMALL], "no such file"),
    ],
)
def test_errors_of_the_command_are_short(arguments: list[str], words: str) -> None:
    assert words in run(*arguments, fails=True).replace("\n", " ")
