"""Reads models safely from Hub repositories, folders of the same format, and checkpoints of `zoo train`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.config.catalog import is_file, shipped
from zoo.errors import CheckpointError, shorten
from zoo.models.described import check_description, check_overrides
from zoo.models.variants import BACKBONE_ARGUMENTS, PREFIX
from zoo.weights.files import read_checkpoint
from zoo.weights.store import hub_file
from zoo.weights.verified import read_metadata, read_verified

HUB, FOLDER, TRAINED = "hf-hub:", "local-dir:", ".safetensors"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CODE = ("auto_map", "custom_pipelines", "custom_load", "trust_remote_code")
"""Keys by which a configuration requests custom code."""
LARGEST_CONFIG = 2**22
"""Bytes."""


@dataclass(frozen=True)
class Stored:
    """A model as stored in a repository or folder.

    Attributes:
        variant: a shipped one, or, for a checkpoint of `zoo train`, possibly a configuration file next to it.
        tensors: its weights.
        overrides: configuration keys.
        described: the input transform and similar facts, in timm's terms.
    """

    variant: str
    tensors: dict[str, torch.Tensor]
    overrides: dict[str, Any]
    described: dict[str, Any]


def is_place(name: str) -> bool:
    """Whether a name refers to a repository or folder to which models are published."""
    return isinstance(name, str) and name.startswith((HUB, FOLDER))


def is_stored(name: str) -> bool:
    """Whether a model name refers to a repository, a folder or a checkpoint that describes its model."""
    return is_place(name) or (isinstance(name, str) and name.endswith(TRAINED))


def read(name: str) -> Stored:
    """Read `hf-hub:owner/name`, `hf-hub:owner/name@revision`, `local-dir:folder` or `trained.safetensors`.

    Raises:
        CheckpointError: if it cannot be obtained or read, is not a model of the zoo, or asks to run code.
    """
    if not is_place(name):
        return _read_trained(Path(name))
    config = _read_config(_file(name, "config.json"), name)
    architecture = config.get("architecture")
    variant = str(architecture).removeprefix(PREFIX)
    if architecture != PREFIX + variant or variant not in shipped():
        raise CheckpointError(f"{name}: its architecture is {shorten(architecture)}, expected {PREFIX} and a variant")
    arguments = check_overrides(config.get("model_args", {}), name)
    return Stored(
        variant,
        read_checkpoint(_file(name, *WEIGHTS)),
        {key: value for key, value in arguments.items() if key not in BACKBONE_ARGUMENTS},
        check_description(config.get("pretrained_cfg", {}), name),
    )


def describes_itself(path: Path) -> bool:
    """Whether a checkpoint file names its model, as those of `zoo train` do."""
    return path.suffix == TRAINED and path.is_file() and "model" in read_metadata(path)


def _read_trained(path: Path) -> Stored:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if not describes_itself(path):
        raise CheckpointError(f"{path}: does not say which model it is of, as those of `zoo train` do; name the model")
    tensors, about = read_verified(path)
    try:
        overrides, described = json.loads(about["overrides"]), json.loads(about["described"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: what it says of its model cannot be read ({error})") from error
    return Stored(
        _beside(path, about["model"]),
        tensors,
        check_overrides(overrides, str(path)),
        check_description(described, str(path)),
    )


def _beside(path: Path, model: str) -> str:
    """The name of a shipped model, or the place of a configuration in the folder of its checkpoint."""
    if model in shipped():
        return model
    if not is_file(model) or Path(model).name != model or "\\" in model:
        raise CheckpointError(
            f"{path}: says that its model is {shorten(model)}, expected a shipped one or a YAML file beside it"
        )
    return str(path.parent / model)


def _file(name: str, *candidates: str) -> Path:
    """The first of the candidate files that exists in a repository or folder."""
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        return hub_file(repository, candidates, revision or None)
    folder = Path(name.removeprefix(FOLDER))
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise CheckpointError(f"{name}: has no file {' or '.join(candidates)}")


def _read_config(path: Path, name: str) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_CONFIG:
        raise CheckpointError(f"{name}: config.json has {path.stat().st_size} bytes, which no configuration needs")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: config.json is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{name}: config.json holds {shorten(config)}, expected a mapping")
    described = config.get("pretrained_cfg")
    for place in (config, described if isinstance(described, dict) else {}):
        if asked := [key for key in CODE if place.get(key)]:
            raise CheckpointError(
                f"{name}: config.json asks for code of its own ({', '.join(asked)}), which is refused"
            )
    return config
