"""Configuration: the override rules, and errors that a person can act on."""

from __future__ import annotations

import copy
import inspect
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from tests.conftest import VARIANTS
from zoo.config.catalog import CONFIG_DIR, load_config
from zoo.config.overrides import override
from zoo.config.parse import parse_model
from zoo.errors import Where
from zoo.nn.backbone import Backbone

TINY = {
    "family": "test",
    "img_size": 64,
    "stem": {"type": "conv", "layers": [{"kernel": 4, "stride": 4, "padding": 0, "norm": "layernorm"}]},
    "downsample": {"type": "conv", "layers": [{"kernel": 2, "stride": 2, "padding": 0}]},
    "block": {
        "attn": {"type": "window", "norm": "layernorm", "head_dim": 8, "size": 4},
        "mlp": {"type": "mlp", "norm": "layernorm", "ratio": 2},
    },
    "stages": [{"dim": 16, "depth": 2}, {"dim": 32, "depth": 2}],
    "head": {"order": "norm_pool", "norm": "layernorm"},
    "init": "trunc_normal",
}
WHERE = Where("test.yaml")


def parse(**changes):
    return parse_model("test", override(TINY, changes, WHERE), WHERE)


def write(tmp_path: Path, tree: object) -> str:
    path = tmp_path / "my.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return str(path)


def test_dotted_key_sets_one_value_and_plain_key_replaces() -> None:
    blocks = parse(**{"stages": [{"dim": 16, "depth": 1, "mlp.ratio": 3}]}).stages[0].blocks
    assert blocks[0][1].part.params == {"ratio": 3}
    assert blocks[0][1].norm.type == "layernorm"
    replaced = parse(**{"stages": [{"dim": 16, "depth": 1, "mlp": {"type": "mlp"}}]}).stages[0].blocks
    assert replaced[0][1].part.params == {}
    assert replaced[0][1].norm is None


def test_branches_selects() -> None:
    (block,) = parse(stages=[{"dim": 16, "depth": 1, "branches": ["mlp"]}]).stages[0].blocks
    assert [branch.name for branch in block] == ["mlp"]


def test_cycle_is_taken_by_block_index() -> None:
    stage = {"dim": 16, "depth": 5, "attn.size": {"cycle": [2, 4]}}
    assert [b[0].part.params["size"] for b in parse(stages=[stage]).stages[0].blocks] == [2, 4, 2, 4, 2]


def test_a_dotted_key_reaches_every_item_of_a_cycle() -> None:
    block = {"mlp": {"cycle": [{"type": "mlp"}, {"type": "mlp", "act": "silu"}]}}
    stage = {"dim": 16, "depth": 2, "mlp.ratio": 3}
    first, second = parse(block=block, stages=[stage]).stages[0].blocks
    assert first[0].part.params == {"ratio": 3}
    assert second[0].part.params == {"ratio": 3, "act": "silu"}


def test_first_holds_for_block_zero_and_at_for_the_listed_ones() -> None:
    stage = {"dim": 16, "depth": 3, "mlp.first": {"ratio": 8}, "attn.at": [1, 2]}
    blocks = parse(stages=[stage]).stages[0].blocks
    assert [[branch.name for branch in block] for block in blocks] == [["mlp"], ["attn", "mlp"], ["attn", "mlp"]]
    assert [block[-1].part.params["ratio"] for block in blocks] == [8, 2, 2]


def test_sizes_follow_the_image() -> None:
    config = parse(**{"img_size": [64, 96], "block.attn.size": "${img_size/16}"})
    assert config.stages[0].blocks[0][0].part.params["size"] == (4, 6)


def test_variants_extend_each_other(tmp_path: Path) -> None:
    tree = {**TINY, "variants": {"a": {"stages.1.depth": 3}, "b": {"extends": "a", "stages.1.dim": 64}}}
    config = load_config(write(tmp_path, tree) + ":b")
    assert (config.stages[1].dim, len(config.stages[1].blocks)) == (64, 3)


def test_own_file_trains_without_registration(tmp_path: Path) -> None:
    model = zoo.create_model(write(tmp_path, TINY), num_classes=3)
    import torch

    model(torch.randn(2, 3, 33, 47)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_file_may_be_called_as_a_shipped_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TINY)
    (tmp_path / "my.yaml").rename(tmp_path / "davit_tiny.yaml")
    monkeypatch.chdir(tmp_path)
    assert zoo.create_model("davit_tiny.yaml").config.family == "test"


def test_own_variants_claim_no_published_figures(tmp_path: Path) -> None:
    name = write(tmp_path, {**TINY, "variants": {"davit_tiny": {}}}) + ":davit_tiny"
    info = zoo.model_info(name)
    assert (info.name, info.family, info.top1, info.checkpoints) == ("davit_tiny", "test", None, ())
    with pytest.raises(zoo.CheckpointError, match="no published checkpoint"):
        zoo.create_model(name, pretrained=True)


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        parse().stages[0].dim = 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block.attn.sise": 7}, ["attn", "sise", "size"]),
        ({"block.attn.type": "windoww"}, ["windoww", "'window'", "channel"]),
        ({"stages.1.dim": "wide"}, ["stages.1.dim", "'wide'", "whole number"]),
        ({"stages.1.dim": 30}, ["attn", "head_dim 8", "30"]),
        ({"stages.0.depht": 2}, ["stages.0", "depht", "depth"]),
        ({"head.order": "norm"}, ["head.order", "norm", "norm_pool"]),
        ({"block.attn.norm": "layernrom"}, ["attn.norm", "layernrom", "'layernorm'"]),
        ({"downsample": None}, ["stages.1", "16", "32", "embed"]),
        ({"init": "kaiming"}, ["init", "kaiming", "trunc_normal"]),
        ({"block.training": {"type": "mlp"}}, ["training", "taken"]),
        ({"block.attn.size": "${img_size/128}"}, ["img_size", "128"]),
        ({"block.mlp.layer_scale": -1}, ["layer_scale", "-1"]),
        ({"drop_path_rate": 1.5}, ["drop_path_rate", "1.5"]),
        ({"stages.1.dim": 65536}, ["parameters", "at most"]),
        ({"stages": [{"dim": 16, "depth": 1, "attn" + ".x" * 5000: 1}]}, ["stages.0", "at most 20 dots"]),
        ({"stages.1.depth": 10**6}, ["stages.1.depth", "1000000"]),
    ],
)
def test_errors_name_file_path_found_and_allowed(tmp_path: Path, changes: dict, words: list[str]) -> None:
    with pytest.raises(zoo.ConfigError) as caught:
        zoo.create_model(write(tmp_path, override(TINY, changes, WHERE)))
    for word in ["my.yaml", *words]:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "a: &x [*x]",
        "family: 3",
        "\x00",
        "a: 1\na: 2",
        "[1]: 2",
        "? {a: 1}\n: 2",
        "!!python/object:os.system {}",
    ],
)
def test_broken_files(tmp_path: Path, text: str) -> None:
    with pytest.raises(zoo.ConfigError, match=r"my\.yaml"):
        zoo.create_model(write(tmp_path, text))


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(zoo.ConfigError, match="davit_tiny"):
        zoo.create_model("davit_tinny")
    with pytest.raises(zoo.ConfigError, match="cannot be read"):
        zoo.create_model(str(tmp_path / "none.yaml"))
    with pytest.raises(zoo.ConfigError, match="bases"):
        zoo.create_model(f"{CONFIG_DIR / 'davit.yaml'}:bases")
    with pytest.raises(zoo.ConfigError, match="variants"):
        zoo.create_model(str(CONFIG_DIR / "davit.yaml"))
    circular = write(tmp_path, {**TINY, "variants": {"a": {"extends": "b"}, "b": {"extends": "a"}}})
    with pytest.raises(zoo.ConfigError, match="extends itself"):
        zoo.create_model(f"{circular}:a")
    with pytest.raises(zoo.ConfigError, match="window_size"):
        zoo.create_model("davit_tiny", window_size=7)
    with pytest.raises(zoo.ConfigError, match="features_only"):
        zoo.create_model("davit_tiny", out_indices=(0, 1))
    with pytest.raises(zoo.ConfigError, match="num_classes"):
        zoo.create_model("davit_tiny", num_classes=-1)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.just({"cycle": []}), st.just({"cycle": [1], "x": 2}), st.just({"type": "mlp"}), st.just("${img_size/0}"),
)  # fmt: skip


def _paths(node: object, path: tuple = ()) -> list[tuple]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] * bool(path) + [p for key, child in children for p in _paths(child, (*path, key))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(_paths(TINY)),
    junk=JUNK,
    action=st.sampled_from(["replace", "delete", "add"]),
    name=st.text(max_size=6),
)
def test_malformed_configs_give_config_errors(tmp_path, path: tuple, junk: object, action: str, name: str) -> None:
    """Whatever is put anywhere, a model or a ConfigError comes out, and nothing else."""
    tree = copy.deepcopy(TINY)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if action == "delete":
        del parent[path[-1]]
    elif action == "add" and isinstance(parent, dict):
        parent[name] = junk
    else:
        parent[path[-1]] = junk
    try:
        model = parse_and_build(tmp_path, tree)
    except zoo.ConfigError as error:
        outcome = str(error)
    else:
        outcome = model.config.where.file
    assert "my.yaml" in outcome


def parse_and_build(tmp_path: Path, tree: dict) -> nn.Module:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return zoo.create_model(str(path), num_classes=2)


def _norms(model: nn.Module) -> dict[str, set[float]]:
    kinds: dict[str, set[float]] = {"layernorm": set(), "batchnorm": set()}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            kinds["layernorm" if isinstance(module, nn.LayerNorm) else "batchnorm"].add(module.eps)
    return kinds


@pytest.mark.parametrize(
    ("pattern", "layernorm", "batchnorm", "acts"),
    [
        ("davit_*", {1e-5}, set(), {"gelu"}),
        ("maxvit_*_tf_*", {1e-5}, {1e-3}, {"gelu_tanh"}),
        ("maxvit_*_rw_*", {1e-6}, {1e-5}, {"silu", "gelu"}),
    ],
)
def test_published_eps_and_activations(pattern: str, layernorm: set, batchnorm: set, acts: set) -> None:
    """Random weights cannot see these, so they are pinned to what the authors wrote."""
    import torch

    from zoo.nn.layers.activations import ACTIVATIONS

    for name in zoo.list_models(pattern):
        with torch.device("meta"):
            model = Backbone(load_config(name))
        assert _norms(model) == {"layernorm": layernorm, "batchnorm": batchnorm}, name
        used = [getattr(module, "act", None) for module in model.modules()]
        used += [act for module in model.modules() for act in getattr(module, "acts", [])]
        assert {key for key, act in ACTIVATIONS.items() if act in used} == acts, name
        heads = [module.heads for module in model.modules() if hasattr(module, "heads")]
        assert heads
        assert all(module.head_dim == 32 for module in model.modules() if hasattr(module, "head_dim"))


@pytest.mark.parametrize(
    ("attn", "words"),
    [
        ({"type": "neighborhood", "head_dim": 10, "size": 7}, "head_dim 10 does not divide the width 16"),
        ({"type": "neighborhood", "head_dim": 8, "size": 6}, "odd"),
        ({"type": "routing", "head_dim": 8, "topk": 50}, "7 x 7 regions"),
        ({"type": "window", "head_dim": 8, "interval": 4}, "the key 'size' is missing"),
        ({"type": "window", "head_dim": 8, "size": 4, "pos_bias": "table", "shrink": True}, "must be a network"),
        ({"type": "hilo", "head_dim": 8, "alpha": 1.5}, "from 0 to 1"),
        ({"type": "cosine", "head_dim": 8, "pretrained": 1, "trained": 7}, "at least 2"),
        ({"type": "global", "head_dim": 8, "lepe": "keys"}, "values"),
        ({"type": "dwconv", "residual": False, "shortcut": {"type": "pool"}}, "no shortcut"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path, attn: dict, words: str) -> None:
    with pytest.raises(zoo.ConfigError, match=words):
        zoo.create_model(write(tmp_path, override(TINY, {"block.attn": attn}, WHERE)))


def test_a_file_may_extend_a_shipped_variant(tmp_path: Path) -> None:
    path = write(tmp_path, {"extends": "dinat_mini", "stages.2.depth": 1, "drop_path_rate": 0.0})
    config = load_config(path)
    assert [len(stage.blocks) for stage in config.stages] == [3, 4, 1, 5]
    assert (config.name, config.drop_path_rate) == ("my", 0.0)
    with pytest.raises(zoo.ConfigError, match="did you mean 'dinat_mini'"):
        load_config(write(tmp_path, {"extends": "dinat_mni"}))


def test_options_are_arguments_and_values() -> None:
    def pools(**options):
        stages = load_config("transnext_micro", options).stages
        return [stage.blocks[0][0].part.params.get("fixed_pool_size") for stage in stages]

    assert pools() == [None] * 4
    assert pools(fixed_pool_size=5) == [5, 5, 5, None]
    trained = load_config("transnext_micro", {"img_size": 384}).stages[0].blocks[0][0].part.params
    assert (trained["trained"], trained["pretrained"]) == ((96, 96), (56, 56))
    with pytest.raises(zoo.ConfigError, match="fixed_pool_size"):
        zoo.create_model("transnext_micro", fixed_pool_size="large")
    with pytest.raises(zoo.ConfigError, match="at least 32 pixels"):
        load_config("transnext_micro", {"pretrain_size": 20})


def test_public_signatures_are_frozen() -> None:
    """The door: names, order and defaults that users rely on."""
    create = (
        "(name, pretrained=False, *, checkpoint=None, num_classes=None, in_chans=None, img_size=None, "
        "features_only=False, out_indices=None, level_norm=False, output_stride=None, drop_path_rate=None, "
        "drop_rate=0.0, exportable=False, use_ema=True, overrides=None, **keys)"
    )
    expected = {
        "create_model": create,
        "list_models": "(pattern=None, *, family=None, pretrained=False)",
        "model_info": "(name, img_size=None)",
        "convert_checkpoint": "(state_dict, name)",
        "load_checkpoint": "(model, source, use_ema=True)",
        "freeze": "(model, stages)",
        "parameter_groups": "(model, weight_decay=0.05, layer_decay=None)",
    }
    for name, text in expected.items():
        signature = inspect.signature(getattr(zoo, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        assert str(signature.replace(parameters=bare, return_annotation=signature.empty)) == text
    assert typing.get_type_hints(zoo.create_model)["return"] is nn.Module


WIDE = {"block.mlp.ratio": 1, "stages.2.depth": 1}


def test_overrides_are_given_in_either_way() -> None:
    wide, same = (zoo.create_model("davit_tiny", **way) for way in ({"overrides": WIDE}, WIDE))
    assert [p.shape for p in wide.parameters()] == [p.shape for p in same.parameters()]
    assert zoo.create_model(
        "transnext_micro", overrides={"fixed_pool_size": 5}, fixed_pool_size=7
    ).config.overrides == {"fixed_pool_size": 7}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("davit_tiny.pth", {}, "checkpoint='davit_tiny.pth'"),
        ("zoo_davit_tiny", {}, "'davit_tiny'"),
        ("davit_tiny", {"checkpoint_path": "x.pth"}, "checkpoint="),
    ],
)
def test_words_of_timm_are_understood(name: str, settings: dict, words: str) -> None:
    with pytest.raises(zoo.ConfigError, match=words):
        zoo.create_model(name, **settings)


@pytest.mark.parametrize("value", ["${imgsize/32}", "${img_size/0}", "${img_size/32", "${}", "${img_size*2}"])
def test_references_name_something(value: str) -> None:
    with pytest.raises(zoo.ConfigError, match=r"attn\.size: found|unknown"):
        zoo.create_model("maxvit_tiny_tf_224", overrides={"block.wattn.size": value})


def test_every_shipped_variant_is_described() -> None:
    assert zoo.list_models("davit_*") == zoo.list_models(family="davit") == ["davit_base", "davit_small", "davit_tiny"]
    fetched = zoo.list_models(pretrained=True)
    assert {"davit_tiny", "dinat_mini", "transnext_micro"} < set(fetched) < set(VARIANTS)
    assert zoo.list_models("nothing*") == []
