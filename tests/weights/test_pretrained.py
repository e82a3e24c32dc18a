"""`pretrained=True` from a server that speaks the Hub's protocol, by the real client; every family, every failure."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load, save

import zoo
import zoo.timm_models
from tests.golden import Golden
from tests.homes import new_home
from tests.weights.server import Fault, Server, serving
from zoo.weights.manifest import Checkpoint, checkpoints

RECORDS = {
    "biformer_tiny.in1k": "biformer_tiny",
    "crossformer_tiny.in1k": "crossformer_tiny",
    "davit_tiny.msft_in1k": "davit_tiny_timm",
    "davit_tiny.official_in1k": "davit_tiny",
    "dinat_mini.in1k": "dinat_mini_hf",
    "dinat_s_tiny.in1k": "dinat_s_tiny",
    "litv2_s.in1k": "litv2_s",
    "maxvit_rmlp_pico_rw_256.sw_in1k": "maxvit_rmlp_pico_rw_256",
    "nat_mini.in1k": "nat_mini",
    "nat_isotropic_small.in1k": "nat_isotropic_small",
    "transnext_micro.in1k": "transnext_micro",
}
"""A published checkpoint of each family, and the golden whose published keys it is served in."""

ONE = ["nat_mini.in1k"]
DIRECT = ["dinat_s_tiny.in1k"]
THROUGH_TIMM = [*ONE, *DIRECT, "davit_tiny.msft_in1k", "maxvit_rmlp_pico_rw_256.sw_in1k"]

Errors = dict[str, float | str]

SCRIPT = """
import json, sys
from tests.weights.test_pretrained import errors
print(json.dumps(errors(json.loads(sys.argv[1]), "--timm" in sys.argv)))
"""


def errors(names: list[str], through_timm: bool = False) -> Errors:
    """The error of each model's logits, or why it could not be made."""
    found: Errors = {}
    for name in names:
        golden = Golden(RECORDS[name])
        make, prefix = (timm.create_model, "zoo_") if through_timm else (zoo.create_model, "")
        try:
            model = make(f"{prefix}{name}", pretrained=True).eval()
        except zoo.CheckpointError as error:
            found[name] = str(error)
            continue
        assert "state_dict" not in model.pretrained_cfg
        with torch.inference_mode():
            logits = model(golden.images())
        published = torch.from_numpy(golden.arrays["logits"])
        difference = (logits[:, : published.shape[1]] - published).abs().max()
        found[name] = difference.item() / golden.arrays["logits_std"].item()
    return found


def right(found: Errors) -> bool:
    return all(isinstance(error, float) and error < 3e-5 for error in found.values())


PUBLISH = """
import sys, torch, zoo, zoo.models.publish, timm, zoo.timm_models
from tests.golden import Golden
golden = Golden(sys.argv[1])
model = zoo.create_model(sys.argv[1], checkpoint=golden.state_dict(), num_classes=7).eval()
print(zoo.models.publish.publish(model, "hf-hub:me/mine"))
place, images = "hf-hub:me/mine", golden.images()
with torch.inference_mode():
    assert torch.equal(timm.create_model(place, pretrained=True).eval()(images), model(images))
    for loaded in (zoo.create_model(place), zoo.create_model(f"{place}@main")):
        assert torch.equal(loaded.eval()(images), model(images))
"""


def entry_of(name: str) -> Checkpoint:
    return next(entry for entry in checkpoints() if entry.id == name)


def packed(record: str, entry: Checkpoint) -> bytes:
    """A golden's weights as the file that a checkpoint is published as."""
    state = Golden(record).state_dict()
    if entry.file.endswith(".safetensors"):
        return save(state)
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    return buffer.getvalue()


def path_of(entry: Checkpoint) -> str:
    return f"/{entry.hub}/resolve/main/{entry.file}" if entry.host == "hub" else f"/{entry.id}/{entry.file}"


def files(names: Iterable[str]) -> dict[str, bytes]:
    return {path_of(entry_of(name)): packed(RECORDS[name], entry_of(name)) for name in names}


@pytest.fixture(scope="module")
def two() -> dict[str, bytes]:
    return files([*ONE, *DIRECT])


@pytest.fixture
def server(two: dict[str, bytes]) -> Iterator[Server]:
    with serving() as found:
        found.files |= two
        yield found


@pytest.fixture
def home(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; this process has the server for the Hub and all hosts."""
    monkeypatch.setenv("ZOO_HOME", new_home(tmp_path / "zoo"))
    monkeypatch.setenv("ZOO_MIRROR", server.url)
    hub = {"ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hf" / "hub")}
    hub["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in hub.items():
        monkeypatch.setattr(constants, name, value)
    return tmp_path


def begin(home: Path, server: Server, names: list[str], *flags: str, **environment: str) -> subprocess.Popen:
    """The errors in a process of its own, which has the server from its environment."""
    own = {"HF_ENDPOINT": server.url, "ZOO_MIRROR": server.url, "HF_HOME": str(home / "hf")}
    command = [sys.executable, "-c", SCRIPT, json.dumps(names), *flags]
    everything = {**os.environ, **own, **environment}
    return subprocess.Popen(command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> Errors:
    output, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    return json.loads(output.splitlines()[-1])


def test_a_repository_that_publish_made_loads_with_zoo_and_timm(home: Path, server: Server) -> None:
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": "hf_secret"}
    command = [sys.executable, "-c", PUBLISH, "maxvit_rmlp_pico_rw_256"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "me/mine" in done.stdout
    assert b"# maxvit_rmlp_pico_rw_256" in server.files["/me/mine/resolve/main/README.md"]
    assert ("POST", "/api/repos/create", "Bearer hf_secret") in server.seen


@pytest.mark.slow
def test_every_family_arrives_and_needs_no_network_afterwards(home: Path, server: Server) -> None:
    server.files |= files(RECORDS.keys() - {*ONE, *DIRECT})
    found = finish(begin(home, server, list(RECORDS)))
    assert right(found), found
    asked = len(server.seen)
    assert right(errors([*ONE, *DIRECT]))
    assert len(server.seen) == asked, server.seen[asked:]
    found = finish(begin(home, server, THROUGH_TIMM, "--timm", HF_HUB_OFFLINE="1"))
    assert right(found), found
    assert len(server.seen) == asked


def test_what_is_not_here_is_not_fetched_offline(home: Path, server: Server) -> None:
    found = finish(begin(home, server, [*ONE, *DIRECT], HF_HUB_OFFLINE="1"))
    assert all("is not" in str(error) for error in found.values()), found
    assert not server.seen


def test_a_hub_without_the_file_and_one_that_refuses(home: Path, server: Server) -> None:
    entry = entry_of(ONE[0])
    content = server.files.pop(path_of(entry))
    assert "has no file" in str(errors(ONE)[ONE[0]])
    server.files[path_of(entry)] = content
    server.faults[path_of(entry)] = [Fault(status=403)] * 9
    assert "cannot be" in str(errors(ONE)[ONE[0]])
    server.faults.clear()
    assert right(errors(ONE))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", [*ONE, *DIRECT])
def test_interruptions_on_the_way_change_nothing(server: Server, name: str) -> None:
    path = path_of(entry_of(name))
    server.faults[path] = [Fault(), Fault(keep=0.3), Fault(keep=0.6), Fault(status=429, headers={"Retry-After": "0"})]
    assert right(errors([name]))


def test_two_processes_at_once(home: Path, server: Server) -> None:
    for process in [begin(home, server, [*ONE, *DIRECT]) for _ in range(2)]:
        assert right(finish(process))


def test_a_damaged_file_in_the_cache_is_not_used(home: Path, server: Server) -> None:
    assert right(errors(DIRECT))
    kept = home / "zoo" / "weights" / DIRECT[0] / "model.safetensors"
    content, asked = kept.read_bytes(), len(server.seen)
    tensors = load(content)
    for damage in (content[: len(content) // 2], content[:-4] + b"\x00\x00\x80\x7f", b""):
        kept.write_bytes(damage)
        assert right(errors(DIRECT))
        assert all(torch.equal(value, tensors[name]) for name, value in load(kept.read_bytes()).items())
    assert {path.name for path in kept.parent.iterdir() if path.suffix != ".lock"} == {
        "model.safetensors",
        "model.json",
        "dinat_s_tiny_in1k_224.pth",
    }
    assert len(server.seen) == asked


@pytest.mark.usefixtures("home")
def test_a_checkpoint_of_another_model_is_refused(server: Server) -> None:
    server.files[path_of(entry_of(DIRECT[0]))] = packed("nat_mini", entry_of(DIRECT[0]))
    assert "does not fit" in str(errors(DIRECT)[DIRECT[0]])
