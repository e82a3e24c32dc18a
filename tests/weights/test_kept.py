"""What is done with weights on this machine: list, verify, convert, compare, import, publish, fold, resize."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import zoo
import zoo.models.publish
import zoo.timm_models
from tests.golden import Golden
from tests.homes import new_home
from zoo.cli.main import app
from zoo.models import recognise
from zoo.weights import store
from zoo.weights.download import sha256_of
from zoo.weights.manifest import default_checkpoint

NAME = "nat_isotropic_small"
ENTRY = default_checkpoint(NAME)
RECORD = Golden(NAME)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_HOME", new_home(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as it would be downloaded."""
    torch.save(RECORD.state_dict(), tmp_path / ENTRY.file)
    return tmp_path / ENTRY.file


def run(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["weights", *map(str, words)])
    assert result.exit_code == status, result.output
    return result.output


def right(model: torch.nn.Module) -> bool:
    published = torch.from_numpy(RECORD.arrays["logits"])
    with torch.inference_mode():
        difference = (model.eval()(RECORD.images())[:, : published.shape[1]] - published).abs().max()
    return bool(difference < 3e-5 * RECORD.arrays["logits_std"])


def test_a_file_fetched_by_hand_is_recognised_listed_and_used(published: Path) -> None:
    assert "not here" in run("list", NAME)
    assert ENTRY.id in run("import", published.parent)
    assert "fetched" in run("list", NAME)
    assert right(zoo.create_model(NAME, pretrained=True))
    assert "fetched and converted" in run("list", ENTRY.id)
    assert run("fetch", NAME) == f"{ENTRY.id}: ready\n"
    assert "none known" in run("verify", NAME)
    assert "sound" in run("verify")


def test_a_full_disk_costs_only_time(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", published)

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    assert right(zoo.create_model(NAME, pretrained=True))
    assert {path.name for path in store.folder_of(ENTRY.id).iterdir() if path.suffix != ".lock"} == {ENTRY.file}


def test_other_names_and_other_files(published: Path, tmp_path: Path) -> None:
    renamed = published.rename(tmp_path / "download.pth")
    assert ENTRY.id in run("import", renamed, "--as", ENTRY.id)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "fits no published checkpoint" in run("import", tmp_path / "other.safetensors", status=1)
    (tmp_path / "empty").mkdir()
    assert "there is no file" in run("import", tmp_path / "empty", status=1)


def test_of_files_that_fit_several_the_name_or_the_user_decides(tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape, *_ in Golden("dinat_large_384").info["state"]}
    torch.save(state, tmp_path / "checkpoint.pth")
    refusal = run("import", tmp_path / "checkpoint.pth", status=1)
    for words in ("dinat_large.in22k_in1k", "dinat_large_384.in22k_in1k", "say which with --as"):
        assert words in refusal
    named = (tmp_path / "checkpoint.pth").rename(tmp_path / "dinat_large_in22k_in1k_384.pth")
    assert [entry.id for entry in recognise.candidates(named)] == ["dinat_large_384.in22k_in1k"]


def test_a_known_checksum_is_held_to(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("import", published)
    for sha256, word, status in ((sha256_of(published), "as published", 0), ("0" * 64, "WRONG", 1)):
        known = replace(ENTRY, sha256=sha256)
        monkeypatch.setattr("zoo.weights.manifest.checkpoints", lambda known=known: (known,))
        assert word in run("verify", status=status)
    with pytest.raises(zoo.CheckpointError, match="not the file that was published"):
        store.fetch(known)


def test_a_converted_file_says_where_it_comes_from(published: Path, tmp_path: Path) -> None:
    assert "wrote" in run("convert", published, tmp_path / "ours.safetensors", "--model", NAME)
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        about = file.metadata()
    checksum = hashlib.sha256(published.read_bytes()).hexdigest()
    assert about == {"format": "pt", "variant": NAME, "source": ENTRY.file, "sha256": checksum, "zoo": zoo.__version__}
    assert right(zoo.create_model(NAME, checkpoint=tmp_path / "ours.safetensors"))
    assert "safetensors" in run("convert", published, tmp_path / "ours.pth", "--model", NAME, status=1)


def test_two_files_are_compared_tensor_by_tensor(published: Path, tmp_path: Path) -> None:
    run("convert", published, tmp_path / "a.safetensors", "--model", NAME)
    assert "are equal" in run("diff", published, tmp_path / "a.safetensors", "--model", NAME)
    changed = load_file(tmp_path / "a.safetensors")
    names = sorted(changed)
    changed[names[0]] = changed[names[0]] + 0.5
    changed[names[1]] = torch.zeros(3, 5, 7)
    changed["new"] = changed.pop(names[2])
    save_file(changed, tmp_path / "b.safetensors")
    output = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", status=1)
    assert "largest difference 0.5" in output
    assert "(3, 5, 7)" in output
    assert "only in the first" in output
    assert "only in the second" in output


@pytest.mark.parametrize("options", [{}, {"num_classes": 7}])
def test_a_published_folder_loads_with_timm_and_zoo(published: Path, tmp_path: Path, options: dict) -> None:
    model = zoo.create_model(NAME, checkpoint=published, **options).eval()
    place = f"local-dir:{tmp_path / 'there'}"
    zoo.models.publish.publish(model, place, ENTRY)
    images = RECORD.images()
    with torch.inference_mode():
        expected = model(images)
        for loaded in (zoo.create_model(place), timm.create_model(place, pretrained=True)):
            assert torch.equal(loaded.eval()(images), expected)
        pyramid = zoo.create_model(place, features_only=True).eval()(images)
    assert len(pyramid) == len(model.stages)
    card = (tmp_path / "there" / "README.md").read_text()
    assert all(text in card for text in (NAME, ENTRY.paper, "license: ", "local-dir:there", "top-1"))


def test_a_configuration_of_ones_own_is_published_with_it(tmp_path: Path) -> None:
    model = zoo.create_model("maxvit_rmlp_pico_rw_256", img_size=128, in_chans=1, **{"stages.2.depth": 2}).eval()
    place = f"local-dir:{tmp_path / 'there'}"
    zoo.models.publish.publish(model, place)
    images = torch.randn(1, 1, 128, 128)
    with torch.inference_mode():
        assert torch.equal(zoo.create_model(place).eval()(images), model(images))


def test_publishing_by_command(published: Path, tmp_path: Path) -> None:
    run("publish", NAME, f"local-dir:{tmp_path / 'there'}", "--checkpoint", published)
    assert right(zoo.create_model(f"local-dir:{tmp_path / 'there'}"))
    assert "not empty" in run("publish", NAME, f"local-dir:{tmp_path / 'there'}", "-c", published, status=1)
    for target in ("somewhere", "somewhere.safetensors"):
        assert "expected hf-hub:" in run("publish", NAME, target, "-c", published, status=1)


def test_folded_norms_change_nothing(small: str) -> None:
    model = zoo.create_model(small).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for values, low in ((norm.running_mean, -1), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -1)):
            values.data.uniform_(low, 1.5)
    images = torch.randn(2, 3, 97, 130)
    fused = zoo.fuse(model)
    with torch.inference_mode():
        expected, found = model(images), fused(images)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in each.modules()) for each in (model, fused))
    assert after < before or before == 0
    assert after == {"biformer": 1}.get(model.config.family, 0)  # BiFormer has one after its last block


def test_position_tables_follow_another_training_size(caplog: pytest.LogCaptureFixture) -> None:
    model = zoo.create_model("maxvit_tiny_tf_224", num_classes=5, **{"stages.2.depth": 1}).eval()
    larger = zoo.resize_positions(model, img_size=288)
    table = "stages.0.blocks.0.wattn.fn.pos_bias.table"
    assert larger.state_dict()[table].shape[1:] == (17, 17)
    assert "resized" in caplog.text
    assert larger.num_classes == 5
    back = zoo.resize_positions(larger, img_size=224)
    assert {n for n, v in back.state_dict().items() if v.shape != model.state_dict()[n].shape} == set()
    with pytest.raises(zoo.CheckpointError):
        zoo.resize_positions(model, **{"stages.2.depth": 3})
    with pytest.raises(zoo.ConfigError, match="nothing to change"):
        zoo.resize_positions(model)


def test_the_verifier_writes_what_it_saw_into_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(zoo.__file__).parents[1] / "scripts")
    from verify_weights import recorded

    text = zoo.weights.manifest.MANIFEST.read_text()
    changed = recorded(text, ENTRY.id, 123, "a" * 64)
    lines = set(changed.splitlines()) - set(text.splitlines())
    assert lines == {f"    sha256: {'a' * 64}", "    size: 123"}
    assert len(changed.splitlines()) == len(text.splitlines())
    with pytest.raises(ValueError, match="no such entry"):
        recorded(changed, ENTRY.id, 1, "b" * 64)
