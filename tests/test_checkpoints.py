"""Checkpoints: every form is recognised, nothing loads half, nothing runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import zoo
from tests import golden
from zoo.config.model import KeySet
from zoo.weights.convert import convert
from zoo.weights.keys import rename

NAME = "maxvit_rmlp_pico_rw_256"


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return golden.Golden(NAME).state_dict()


@pytest.fixture(scope="module")
def expected(published) -> dict[str, torch.Tensor]:
    return zoo.convert_checkpoint(published, NAME)


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".bin", ".safetensors"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("form", ["published", "own"])
def test_every_form_loads(tmp_path: Path, published, expected, suffix: str, wrapper: str | None, form: str) -> None:
    state = published if form == "published" else expected
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    model = zoo.create_model(NAME)
    report = zoo.load_checkpoint(model, path)
    assert report.key_set == ("timm" if form == "published" else "zoo")
    assert set(report.loaded) == set(model.state_dict())
    assert report.resized == report.dropped == ()
    assert "timm" in str(report) or "zoo" in str(report)
    assert unchanged(model, expected)


def test_both_forms_of_davit_meet_in_the_same_names() -> None:
    states = [
        zoo.convert_checkpoint(golden.Golden(f"davit_tiny{form}").state_dict(), "davit_tiny") for form in ("", "_timm")
    ]
    assert set(states[0]) == set(states[1]) == set(zoo.create_model("davit_tiny").state_dict())


def test_prefix_of_parallel_training_is_removed(published, expected) -> None:
    model = zoo.create_model(NAME)
    zoo.load_checkpoint(model, {f"module.{key}": value for key, value in published.items()})
    assert unchanged(model, expected)


def _missing(state):
    del state["stages.1.blocks.0.attn_block.attn.qkv.weight"]


def _extra(state):
    state["stages.9.surprise"] = torch.zeros(1)


def _transposed(state):
    state["stages.0.blocks.0.attn_block.mlp.fc1.weight"] = state["stages.0.blocks.0.attn_block.mlp.fc1.weight"].t()


def _integer(state):
    state["norm.weight"] = state["norm.weight"].long()


def _not_a_tensor(state):
    state["norm.weight"] = [1.0, 2.0]


def _wide_head(state):
    state["head.fc.weight"], state["head.fc.bias"] = torch.zeros(7, 256), torch.zeros(7)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_missing, "1 missing.*qkv.weight"),
        (_extra, "1 unexpected.*surprise"),
        (_transposed, r"fc1.weight is \(32, 128\), expected \(128, 32\)"),
        (_integer, "norm.weight is torch.int64"),
        (_not_a_tensor, "'norm.weight' is a list"),
        (_wide_head, r"head.fc.weight is \(7, 256\)"),
    ],
)
def test_a_wrong_state_dict_leaves_the_model_alone(published, damage, words: str) -> None:
    state = dict(published)
    damage(state)
    model = zoo.create_model(NAME)
    before = snapshot(model)
    with pytest.raises(zoo.CheckpointError, match=words):
        zoo.load_checkpoint(model, state)
    assert unchanged(model, before)


def test_only_the_first_few_keys_are_named(published) -> None:
    with pytest.raises(zoo.CheckpointError) as caught:
        zoo.convert_checkpoint({**published, **{f"x{i}": torch.zeros(1) for i in range(10_000)}}, NAME)
    assert "10000 unexpected" in str(caught.value)
    assert len(str(caught.value)) < 500


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_damaged_and_hostile_files(tmp_path: Path, published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save(published, whole)
    save_file(published, tmp_path / "whole.safetensors")
    torch.save({"a": _Malicious()}, tmp_path / "code.pth")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(_Malicious(), protocol=2))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>quota exceeded</html>")
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1000])
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    (tmp_path / "weights.npz").write_bytes(b"PK")
    model = zoo.create_model(NAME)
    before = snapshot(model)
    names = [
        "code.pth",
        "bare.bin",
        "empty.pth",
        "text.pth",
        "cut.pth",
        "cut.safetensors",
        "no_tensors.pth",
        "weights.npz",
        "none.pth",
    ]
    for name in names:
        with pytest.raises(zoo.CheckpointError, match=name):
            zoo.load_checkpoint(model, tmp_path / name)
        with pytest.raises(zoo.CheckpointError, match=name):
            zoo.create_model(NAME, checkpoint=tmp_path / name)
    assert unchanged(model, before)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(zoo.CheckpointError, match="run code"):
        zoo.load_checkpoint(model, tmp_path / "code.pth")


def test_create_model_adapts_classes_and_channels(published, expected) -> None:
    model = zoo.create_model(NAME, checkpoint=published, num_classes=5, in_chans=1)
    assert model.head.fc.weight.shape == (5, 256)
    own = model.state_dict()
    summed = expected["stages.0.embed.convs.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(own["stages.0.embed.convs.0.weight"], summed)
    same = [k for k in expected if "head.fc" not in k and k != "stages.0.embed.convs.0.weight"]
    assert all(torch.equal(own[k], expected[k]) for k in same)
    assert "state_dict" not in model.pretrained_cfg


def test_features_only_takes_whole_checkpoints(published) -> None:
    image = golden.images(1, 64, 96)
    whole = zoo.create_model(NAME, checkpoint=published).eval()
    features = zoo.create_model(NAME, checkpoint=published, features_only=True, out_indices=(1, 2)).eval()
    with torch.inference_mode():
        expected_maps = whole.forward_intermediates(image, indices=[1, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(image), expected_maps, strict=True))
    later = zoo.create_model(NAME, features_only=True, out_indices=(1, 2)).eval()
    report = zoo.load_checkpoint(later, published)
    assert "head.fc.weight" in report.dropped
    assert any(name.startswith("stages.3") for name in report.dropped)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(later(image), expected_maps, strict=True))


def test_position_tables_are_resized_for_another_window() -> None:
    state = golden.Golden("maxvit_tiny_rw_224").state_dict()
    same = zoo.convert_checkpoint(state, "maxvit_tiny_rw_224")
    model = zoo.create_model("maxvit_tiny_rw_224", img_size=(256, 320))
    report = zoo.load_checkpoint(model, state)
    assert len(report.resized) == 22
    table = model.state_dict()[report.resized[0]]
    assert table.shape == (2, 15, 19)
    assert torch.allclose(table.mean(dim=(1, 2)), same[report.resized[0]].mean(dim=(1, 2)), atol=0.05)


def test_a_checkpoint_and_another_image_size_go_together() -> None:
    state = golden.Golden("maxvit_tiny_rw_224").state_dict()
    model = zoo.create_model("maxvit_tiny_rw_224", checkpoint=state, img_size=(256, 320))
    assert model.stages[0].blocks[0].wattn.fn.pos_bias.table.shape == (2, 15, 19)
    assert model.pretrained_cfg["input_size"] == (3, 256, 320)


def test_foreign_models_are_refused() -> None:
    with pytest.raises(zoo.ConfigError, match=r"zoo\.create_model"):
        zoo.load_checkpoint(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})
    with pytest.raises(zoo.CheckpointError, match="pass one"):
        zoo.create_model(NAME, pretrained=True, checkpoint="x.pth")


def test_key_rules() -> None:
    rules = KeySet(
        {"a.{i}.index": None, "a.{i}.b{j}.*": "stages.{2*i+j}.x.*", "c.{k}": "d.{k-1}"},
    )
    renaming = rename(["a.3.b1.w.bias", "a.0.index", "c.4", "zzz"], rules)
    assert renaming.names == {"a.3.b1.w.bias": ("stages.7.x.w.bias",), "c.4": ("d.3",)}
    assert renaming.dropped == ("a.0.index",)
    assert renaming.unknown == ("zzz",)


def test_key_rules_join_and_split() -> None:
    state = {f"{part}.weight": torch.full((2, 3), float(i)) for i, part in enumerate("kqv")}
    state |= {"gammas": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "layers.7.w": torch.ones(1)}
    rules = KeySet(
        {
            "q.*": "qkv#0.*",
            "k.*": "qkv#1.*",
            "v.*": "qkv#2.*",
            "gammas": ("a.gamma", "b.gamma"),
            "layers.{i}.w": "stages.{i//3}.blocks.{i%3}.w",
        }
    )
    targets = {"qkv.weight": torch.zeros(6, 3), "a.gamma": torch.zeros(2), "b.gamma": torch.zeros(2)}
    targets["stages.2.blocks.1.w"] = torch.zeros(1)
    tensors = convert(state, {"form": rules}, targets).tensors
    assert tensors["qkv.weight"][:, 0].tolist() == [1, 1, 0, 0, 2, 2]
    assert tensors["b.gamma"].tolist() == [3, 4]
    for change, words in (({"gammas": torch.ones(3, 2)}, "2 rows"), ({"k.weight": torch.ones(2, 4)}, "joined")):
        with pytest.raises(zoo.CheckpointError, match=words):
            convert(state | change, {"form": rules}, targets)
    with pytest.raises(zoo.ConfigError, match="divides by zero"):
        rename(["a.1"], KeySet({"a.{i}": "b.{i//0}"}))


def test_unknown_transforms_are_named() -> None:
    rules = KeySet({"a": "b"}, {"b": "squeze"})
    with pytest.raises(zoo.ConfigError, match="did you mean 'squeeze'"):
        convert({"a": torch.zeros(1)}, {"form": rules}, {"b": torch.zeros(1)})


@pytest.mark.parametrize(
    "rule", [("a.{}", "b"), ("a.{1}", "b"), ("a.{i}", "b.{j}"), ("a.{i}", "b.{i**9}"), ("a.{i}", "b.{f(i)}")]
)
def test_unreadable_key_rules(rule: tuple[str, str]) -> None:
    with pytest.raises(zoo.ConfigError, match="key rule"):
        rename(["a.1"], KeySet(dict([rule])))


def test_the_classifier_has_the_size_of_the_checkpoints() -> None:
    state = zoo.create_model("nat_mini", num_classes=37).state_dict()
    assert zoo.create_model("nat_mini", checkpoint=state).num_classes == 37
    assert zoo.create_model("nat_mini", checkpoint=state, num_classes=5).num_classes == 5
    assert zoo.create_model("nat_mini").num_classes == 1000
