"""Checkpoints that training scripts leave: read whatever is beside the tensors, and nothing in them runs."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import enum
import functools
import logging
import pathlib
import pickle
import subprocess
import tarfile
import types
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import FasterRCNN

import zoo
from zoo.models.publish import publish
from zoo.vision import torchvision_backbone
from zoo.weights.files import read_checkpoint
from zoo.weights.verified import write_verified

NAME = "hybrid_window_channel_hilo"
SMALL = {f"stages.{i}.depth": 1 for i in range(len(zoo.model_info(NAME).num_chs))}


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """A mapping of one's own, as many configuration libraries have."""


class Settings:
    """A class of one's own, with a state."""

    def __init__(self) -> None:
        self.lr = 0.1

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("code of the file was run")


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("a")),
    "paths": [pathlib.PosixPath("/a"), pathlib.PureWindowsPath("c:/a")],
    "numpy scalars": {"a": numpy.float64(0.5), "b": numpy.int64(3), "c": numpy.dtype("float32")},
    "arrays": numpy.arange(6.0).reshape(2, 3),
    "collections": [collections.defaultdict(list, a=[1]), collections.Counter("ab"), collections.deque([1])],
    "a mapping": Config(a=Config(b=1)),
    "times": [datetime.datetime(2026, 1, 1), datetime.timedelta(1)],
    "partial": functools.partial(Colour, 1),
    "simple namespace": types.SimpleNamespace(a=1),
    "enum": Colour.RED,
    "types": [float, dict],
    "a class of one's own": Settings(),
    "device and dtype": [torch.device("cpu"), torch.float16, torch.Size([1])],
}


def model(**settings: object) -> nn.Module:
    return zoo.create_model(NAME, **{"num_classes": 10} | SMALL | settings)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model().state_dict().items()}


def assert_holds(loaded: nn.Module, state: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_beside_the_tensors_is_passed_over(tmp_path: Path, state: dict, kind: str, zipped: bool) -> None:
    file, beside = tmp_path / "last.pth", BESIDE[kind]
    torch.save({"args": beside, "state_dict": state, "best": beside}, file, _use_new_zipfile_serialization=zipped)
    assert_holds(model(checkpoint=file), state)
    torch.save({**state, "args": beside}, file, _use_new_zipfile_serialization=zipped)
    assert_holds(model(checkpoint=file), state)


def test_everything_at_once_and_a_whole_model(tmp_path: Path, state: dict) -> None:
    torch.save({"all": BESIDE, "model": state}, tmp_path / "last.pth")
    assert_holds(model(checkpoint=tmp_path / "last.pth"), state)
    torch.save({"model": model()}, tmp_path / "whole.pth")
    with pytest.raises(zoo.CheckpointError, match=r"state_dict\(\)"):
        model(checkpoint=tmp_path / "whole.pth")


class _Runs:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "argument"),
    [(builtins.eval, "open({!r}, 'w')"), (builtins.exec, "open({!r}, 'w')"), (subprocess.getoutput, "touch {}")],
)
def test_what_would_run_is_refused_by_name(tmp_path: Path, function: Callable, argument: str, protocol: int) -> None:
    ran, file = tmp_path / "ran", tmp_path / "last.pth"
    torch.save({"args": _Runs(function, argument.format(str(ran)))}, file, pickle_protocol=protocol)
    with pytest.raises(zoo.CheckpointError, match=f"run code.*{function.__name__}"):
        read_checkpoint(file)
    file.write_bytes(pickle.dumps(_Runs(function, argument.format(str(ran))), protocol))
    with pytest.raises(zoo.CheckpointError, match="run code"):
        read_checkpoint(file)
    assert not ran.exists()


def test_a_checkpoint_of_timms_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained, averaged = model(), model()
    optimiser = torch.optim.AdamW(trained.parameters())
    args = argparse.Namespace(model=NAME, output=tmp_path)
    folders = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path)}
    saver = CheckpointSaver(trained, optimiser, args=args, model_ema=averaged, **folders)
    saver.save_checkpoint(0, numpy.float64(0.5))
    file = tmp_path / "last.pth.tar"
    assert_holds(model(checkpoint=file), averaged.state_dict())
    assert "state_dict_ema" in caplog.text
    assert_holds(model(checkpoint=file, use_ema=False), trained.state_dict())
    assert zoo.load_checkpoint(model(), file).part == "state_dict_ema"
    assert zoo.load_checkpoint(model(), file, use_ema=False).part == "state_dict"


PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "backbone.", "model.backbone.", "a.b.c.module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_found_and_reported(state: dict, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    beside = {"criterion.weight": torch.ones(3), "accuracy.total": torch.tensor(1.0)}
    wrapped = {f"{prefix}{key}": value for key, value in state.items()} | beside
    with caplog.at_level(logging.INFO):
        report = zoo.load_checkpoint(other := model(), {"state_dict": wrapped, "hyper_parameters": {"lr": 0.1}})
    assert (report.prefix, set(report.dropped), report.part) == (prefix, set(beside), "state_dict")
    assert repr(prefix) in caplog.text
    assert repr(prefix) in str(report)
    assert_holds(other, state)
    assert_holds(model(checkpoint=wrapped), state)
    broken = {key: value for key, value in wrapped.items() if not key.endswith("norm.weight")}
    with pytest.raises(zoo.CheckpointError, match="missing"):
        zoo.load_checkpoint(other, broken)


def test_averages(state: dict) -> None:
    other = model()
    assert_holds(model(checkpoint=AveragedModel(other).state_dict()), other.state_dict())
    both = {f"model.{key}": value for key, value in state.items()}
    both |= {f"ema_model.module.{key}": value for key, value in other.state_dict().items()}
    assert_holds(model(checkpoint=both), other.state_dict())
    assert_holds(model(checkpoint=both, use_ema=False), state)


def test_storages_that_a_file_does_not_hold_are_not_made_up(tmp_path: Path) -> None:
    """PyTorch's older reader leaves their numbers as memory is."""
    file = tmp_path / "last.pth"
    torch.save({"a.b": torch.ones(3), "c.d": torch.ones(5)}, file, _use_new_zipfile_serialization=False)
    assert set(read_checkpoint(file)) == {"a.b", "c.d"}
    with file.open("rb") as content:
        for _ in range(4):
            pickle._Unpickler.load(Numbered(content))
        before = file.read_bytes()[: content.tell()]
        keys = pickle.load(content)
        rest = content.read()
    file.write_bytes(before + pickle.dumps(keys[:1], protocol=2) + rest[:20])
    with pytest.raises(zoo.CheckpointError, match=r"damaged.*storages"):
        read_checkpoint(file)


class Numbered(pickle._Unpickler):
    """Passes a pickle of PyTorch by."""

    def persistent_load(self, saved: tuple) -> torch.UntypedStorage:
        return torch.storage.TypedStorage(5, dtype=torch.float32, device="cpu")


def test_other_files_of_pytorch_are_called_by_their_names(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(zoo.CheckpointError, match=r"TorchScript.*torch\.jit\.load"):
        read_checkpoint(tmp_path / "script.pt")
    (tmp_path / "storages").write_bytes(b"")
    with tarfile.open(tmp_path / "old.tar", "w") as archive:
        archive.add(tmp_path / "storages")
    with pytest.raises(zoo.CheckpointError, match="tar archive"):
        read_checkpoint(tmp_path / "old.tar")


def test_what_a_file_sets_on_a_tensor_is_not_asked(tmp_path: Path, state: dict) -> None:
    for value in state.values():
        value.numel = None
    torch.save(state, tmp_path / "last.pth")
    assert_holds(model(checkpoint=tmp_path / "last.pth"), state)


@pytest.mark.parametrize("level_norm", [False, True])
@pytest.mark.parametrize("out_indices", [None, (0, 1)])
def test_a_pyramid_takes_its_own_state(level_norm: bool, out_indices: tuple[int, ...] | None) -> None:
    settings = {"features_only": True, "level_norm": level_norm, "out_indices": out_indices, "num_classes": None}
    pyramid = model(**settings)
    again = model(**settings)
    assert zoo.load_checkpoint(again, pyramid.state_dict()).prefix == "model."
    assert_holds(again, pyramid.state_dict())
    assert_holds(model(**settings, checkpoint=pyramid.state_dict()), pyramid.state_dict())


def test_a_pyramid_for_a_new_classifier_and_other_channels() -> None:
    pyramid = model(features_only=True, num_classes=None)
    classifier = model(checkpoint=pyramid.state_dict(), num_classes=7, in_chans=5)
    name = "stages.1.blocks.0."
    own = classifier.state_dict()
    inside = [key for key in own if key.startswith(name)]
    assert inside
    assert all(torch.equal(own[key], pyramid.state_dict()[f"model.{key}"]) for key in inside)
    assert classifier(torch.zeros(1, 5, 64, 64)).shape == (1, 7)
    with pytest.raises(zoo.CheckpointError, match="features_only=True"):
        model(checkpoint=pyramid.state_dict(), num_classes=None)


def test_a_detector_gives_its_backbone_back() -> None:
    detector = FasterRCNN(torchvision_backbone(NAME, **SMALL), num_classes=5)
    body = torchvision_backbone(NAME, checkpoint=detector.state_dict(), **SMALL).body
    assert_holds(body, detector.backbone.body.state_dict())


@pytest.mark.parametrize("given", [1, 3, 4])
@pytest.mark.parametrize("wanted", [None, 1, 2, 3, 4])
def test_channels_are_those_of_the_weights_or_those_asked_for(tmp_path: Path, given: int, wanted: int | None) -> None:
    saved = model(in_chans=given).eval()
    publish(saved, place := f"local-dir:{tmp_path / 'there'}")
    grey = torch.randn(1, 1, 64, 64)
    for found in (zoo.create_model(place, in_chans=wanted), model(checkpoint=saved.state_dict(), in_chans=wanted)):
        assert found.in_chans == (wanted or given)
        assert found.pretrained_cfg["first_conv"]
        if found.in_chans == 1 or found.in_chans % given == 0:  # a grey picture is then seen alike
            with torch.inference_mode():
                images = [grey.expand(-1, channels, -1, -1) for channels in (found.in_chans, given)]
                torch.testing.assert_close(found.eval()(images[0]), saved(images[1]), rtol=1e-3, atol=1e-4)


KINDS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_another_kind_leave_the_model_alone(state: dict, kind: torch.dtype) -> None:
    fresh = model()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(zoo.CheckpointError, match=str(kind)):
        zoo.load_checkpoint(fresh, {key: value.to(kind) for key, value in state.items()})
    with pytest.raises(zoo.CheckpointError, match="meta"):
        zoo.load_checkpoint(fresh, {key: value.to("meta") for key, value in state.items()})
    assert_holds(fresh, before)


@pytest.mark.parametrize("where", [0.3, 0.5, 0.8])
def test_a_flipped_bit_is_seen(tmp_path: Path, state: dict, where: float) -> None:
    torch.save(state, tmp_path / "a.pth")
    write_verified(tmp_path / "a.safetensors", state, {"model": NAME})
    for file in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        read_checkpoint(file)
        content = bytearray(file.read_bytes())
        content[int(len(content) * where)] ^= 0x40
        file.write_bytes(content)
        with pytest.raises(zoo.CheckpointError, match="damaged"):
            read_checkpoint(file)


def test_a_file_of_another_origin_has_no_checksum_to_fail(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt", "sha256": "of something else"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert "sha256" in file.metadata()
    assert read_checkpoint(tmp_path / "a.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    "beside",
    [
        {"ema": {"decay": 0.99}},
        {"model": {"name": "swin"}},
        {"counts": collections.defaultdict(int, a=1, b=2)},
        {"queue": collections.deque([1, 2, 3])},
        {"counter": collections.Counter("abracadabra")},
    ],
    ids=lambda beside: next(iter(beside)),
)
def test_what_lies_beside_the_weights_does_not_matter(tmp_path: Path, beside: dict) -> None:
    model = zoo.create_model("nat_mini", num_classes=3)
    torch.save({"state_dict": model.state_dict(), **beside}, tmp_path / "run.pth")
    found = zoo.create_model("nat_mini", checkpoint=tmp_path / "run.pth")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    knot: dict = {"a": 1}
    for _ in range(8):
        knot = dict.fromkeys("abcdefgh", knot)
    knot["self"] = knot
    with pytest.raises(zoo.CheckpointError):
        zoo.convert_checkpoint(knot, "nat_mini")


def test_arrays_are_tensors() -> None:
    """As `{key: value.numpy()}` keeps them, in any order of bytes."""
    model = zoo.create_model("nat_mini", num_classes=3)
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    key = "stages.0.embed.convs.0.weight"
    arrays[key] = arrays[key].astype(">f4")
    for source in (arrays, {"state_dict": arrays}):
        found = zoo.create_model("nat_mini", checkpoint=source, num_classes=3).state_dict()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
