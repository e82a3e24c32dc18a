"""Hostile and broken files: a clear error soon, in little memory, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import zoo
from tests.golden import Golden
from zoo.weights import manifest

NAME = "maxvit_rmlp_pico_rw_256"
SECONDS, MEGABYTES = 20, 600

SCRIPT = """
import json, resource, sys, time, zoo
model = zoo.create_model(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        zoo.load_checkpoint(model, path)
        said = "loaded"
    except zoo.CheckpointError as error:
        said = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found[path] = said, time.monotonic() - start, grown
print(json.dumps(found))
"""


class Runs:
    """What a pickle does that runs code when it is read."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder}/ran"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def state() -> dict[str, torch.Tensor]:
    return Golden(NAME).state_dict()


def runs_code(folder: Path) -> Path:
    torch.save({"model": state(), "hook": Runs(folder)}, folder / "runs_code.pth")
    return folder / "runs_code.pth"


def plain_pickle_that_runs_code(folder: Path) -> Path:
    path = folder / "plain_pickle_that_runs_code.pth"
    path.write_bytes(pickle.dumps(Runs(folder)))
    return path


def zip_bomb(folder: Path) -> Path:
    torch.save({"weight": torch.zeros(4)}, path := folder / "zip_bomb.pth")
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content if "data/" not in name else bytes(2**28))
    return path


def header_of_100_gb(folder: Path) -> Path:
    path = folder / "header_of_100_gb.safetensors"
    path.write_bytes(struct.pack("<Q", 10**11) + b"{" + b" " * 1000)
    return path


def tensor_of_a_terabyte(folder: Path) -> Path:
    path = folder / "tensor_of_a_terabyte.safetensors"
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


def one_number_for_a_terabyte(folder: Path) -> Path:
    tensors = state()
    tensors[next(iter(tensors))] = torch.zeros(1).expand(2**38)
    torch.save(tensors, folder / "one_number_for_a_terabyte.pth")
    return folder / "one_number_for_a_terabyte.pth"


def wrong_kind_of_number(folder: Path) -> Path:
    torch.save({k: v.long() for k, v in state().items()}, folder / "wrong_kind_of_number.pth")
    return folder / "wrong_kind_of_number.pth"


def ten_thousand_more_keys(folder: Path) -> Path:
    more = {f"{'x' * 1000}.{i}": torch.zeros(1) for i in range(10_000)}
    torch.save({**state(), **more}, folder / "ten_thousand_more_keys.pth")
    return folder / "ten_thousand_more_keys.pth"


HOSTILE = {
    runs_code: "run code",
    plain_pickle_that_runs_code: "run code",
    zip_bomb: "unpacks to",
    header_of_100_gb: "cannot be read",
    tensor_of_a_terabyte: "cannot be read",
    one_number_for_a_terabyte: "more numbers than it holds",
    wrong_kind_of_number: "torch.int64, expected torch.float32",
    ten_thousand_more_keys: "10000 unexpected",
}


@pytest.mark.slow
def test_hostile_files_are_refused_soon_and_in_little_memory(tmp_path: Path) -> None:
    paths = {str(make(tmp_path)): said for make, said in HOSTILE.items()}
    command = [sys.executable, "-c", SCRIPT, NAME, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for path, (said, seconds, grown) in json.loads(done.stdout.splitlines()[-1]).items():
        assert paths[path] in said, path
        assert len(said) < 3000, path
        assert seconds < SECONDS, path
        assert grown < MEGABYTES, path
    assert not (tmp_path / "ran").exists()


def test_numbers_that_are_none_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    tensors = zoo.convert_checkpoint(state(), NAME)
    names = [name for name, value in tensors.items() if value.is_floating_point()][:2]
    for name, wrong in zip(names, (torch.nan, torch.inf), strict=True):
        tensors[name].view(-1)[-1] = wrong
    report = zoo.load_checkpoint(zoo.create_model(NAME), tensors)
    assert report.nonfinite == tuple(names)
    assert "2 nonfinite" in str(report)
    assert names[0] in caplog.text


@pytest.mark.parametrize("file", ["../../.bashrc", "/etc/passwd", "a/b.pth", ".pth", "a b.pth"])
def test_a_file_outside_of_the_cache_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    text = manifest.MANIFEST.read_text().replace("file: dinat_s_tiny_in1k_224.pth", f"file: {file}")
    monkeypatch.setattr(manifest, "MANIFEST", tmp_path / "weights_manifest.yaml")
    manifest.MANIFEST.write_text(text)
    with pytest.raises(zoo.ConfigError, match="file"):
        manifest.checkpoints()


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "zoo_nat_mini", "auto_map": {"AutoModel": "evil.Model"}},
        {"architecture": "zoo_nat_mini", "pretrained_cfg": {"custom_load": True}},
        {"architecture": "resnet50"},
        {"architecture": "zoo_../nat_mini"},
        {"architecture": ["zoo_nat_mini"]},
        {"architecture": "zoo_nat_mini", "model_args": ["x"]},
        {"architecture": "zoo_nat_mini", "pretrained_cfg": 3},
        ["zoo_nat_mini"],
    ],
)
def test_a_configuration_that_asks_for_code_or_for_nothing_of_ours(tmp_path: Path, config: object) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(zoo.CheckpointError):
        zoo.create_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_a_configuration_that_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(zoo.CheckpointError, match="JSON"):
        zoo.create_model(f"local-dir:{tmp_path}")
