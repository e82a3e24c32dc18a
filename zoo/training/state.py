"""The progress of a run, and everything needed to resume it exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from zoo.errors import CheckpointError
from zoo.training.data.folders import some
from zoo.training.recipe import fingerprint
from zoo.training.setup import Parts
from zoo.version import __version__
from zoo.weights.verified import read_verified, write_verified

KEPT = 2
"""The number of state files: if the last one is damaged, the previous one is used."""
_EVERYWHERE = StateDictOptions(full_state_dict=True)
_ON_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)  # the other processes get nothing
_MODEL, _EMA, _OPTIMIZER = "model.", "ema.", "optimizer."


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: number of optimiser steps since the start of the run.
        best: highest top-1 so far, in percent, and its epoch, from 1.
        loss_sum, loss_count: sum and number of losses in this epoch.
        skipped: number of steps without a finite loss.
        seconds, training_seconds, images: totals of the run so far; the second without validation.
        history: one row per epoch.
    """

    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    images: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def weights(parts: Parts) -> dict[str, Any]:
    """The weights for users of the run: averaged if available, otherwise the model's, gathered on the main process."""
    if parts.ema is not None:
        return parts.ema.module.state_dict()
    return get_model_state_dict(parts.model, options=_ON_MAIN)


def save_weights(parts: Parts, paths: Sequence[Path], metrics: Mapping[str, Any]) -> None:
    """Write identical self-describing checkpoints for `zoo predict` and `zoo.create_model`."""
    tensors = weights(parts)
    if not parts.accelerator.is_main_process:
        return
    about = {"format": "pt", "zoo": __version__, "model": parts.model_name}
    mappings = {"overrides": parts.backbone.config.overrides, "described": parts.described, "metrics": metrics}
    about |= {key: json.dumps(value) for key, value in mappings.items()}
    for path in paths:
        write_verified(path, tensors, about)


def save_state(parts: Parts, folder: Path, progress: Progress) -> None:
    """Save everything needed to resume in one file; older files except the last are removed."""
    tensors: dict[str, Any] = {
        _MODEL + name: value for name, value in get_model_state_dict(parts.model, options=_ON_MAIN).items()
    }
    if parts.ema is not None:
        tensors |= {_EMA + name: value for name, value in parts.ema.module.state_dict().items()}
    numbers: dict[str, Any] = {}
    state: dict[str, Any] = get_optimizer_state_dict(parts.model, _bare(parts), options=_ON_MAIN)
    for name, entries in state.get("state", {}).items():
        for key, value in entries.items():
            place = tensors if isinstance(value, torch.Tensor) else numbers
            place[f"{_OPTIMIZER}{name}.{key}"] = value
    if not parts.accelerator.is_main_process:
        return
    scaler = parts.accelerator.scaler.state_dict() if parts.accelerator.scaler else {}
    about = {"progress": asdict(progress), "optimizer": numbers, "scaler": scaler, "data": parts.data}
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{progress.step:09d}.safetensors"
    written = {key: json.dumps(value) for key, value in about.items()}
    write_verified(path, tensors, {**written, "recipe": fingerprint(parts.recipe)})
    for old in _states(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load_state(parts: Parts, folder: Path) -> tuple[Progress, list[str]] | None:
    """Resume from the newest intact state, if there is one. Also returns which states were damaged.

    Raises:
        CheckpointError: if it belongs to another model, optimiser or data set.
    """
    damaged = []
    for path in _states(folder):
        try:
            tensors, about = read_verified(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if about.get("recipe") != fingerprint(parts.recipe):
            raise CheckpointError(f"{path}: is a state of another run: move it out of this folder")
        try:
            values = {key: json.loads(about[key]) for key in ("progress", "optimizer", "scaler", "data")}
            _check_data(values["data"], parts.data)
            _restore(parts, tensors, values)
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: does not fit this run: {error}") from error
        return Progress(**values["progress"]), damaged
    if damaged:
        raise CheckpointError("no state of this run is whole:\n" + "\n".join(damaged))
    return None


def _check_data(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what `Split.identity` says of both splits."""
    before, after = list(then["training"]), list(now["training"])
    if before != after:
        changed = sorted(set(before) ^ set(after)) or after
        raise ValueError(f"its classes were others, see {some(changed)}; start a run in another --output")
    changed = [f"{name} ({split})" for split in now for name in after if then[split][name] != now[split][name]]
    if changed:
        counts = " and ".join(
            f"{_images(which['training'])} training and {_images(which['validation'])} validation images"
            for which in (then, now)
        )
        raise ValueError(
            f"the data set has changed, {counts} now; names, sizes or classes of images are others in {some(changed)}; "
            "start a run in another --output"
        )


def _images(classes: Mapping[str, Any]) -> int:
    return sum(count for count, _ in classes.values())


def _states(folder: Path) -> list[Path]:
    """The state files, newest first."""
    found = [path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", path.stem)]
    return sorted(found, reverse=True)


def _restore(parts: Parts, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    set_model_state_dict(parts.model, _under(_MODEL, tensors), options=_EVERYWHERE)
    if parts.ema is not None:
        parts.ema.module.load_state_dict(_under(_EMA, tensors))
    optimizer = _bare(parts)
    groups = get_optimizer_state_dict(parts.model, optimizer, options=_EVERYWHERE)["param_groups"]
    state: dict[str, dict[str, Any]] = {}
    for name, value in {**_under(_OPTIMIZER, tensors), **_under(_OPTIMIZER, about["optimizer"])}.items():
        parameter, _, key = name.rpartition(".")
        state.setdefault(parameter, {})[key] = value
    whole: dict[str, Any] = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(parts.model, optimizer, whole, options=_EVERYWHERE)
    if parts.accelerator.scaler:
        parts.accelerator.scaler.load_state_dict(about["scaler"])


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _bare(parts: Parts) -> torch.optim.Optimizer:
    """torch's optimiser inside accelerate's."""
    return getattr(parts.optimizer, "optimizer", parts.optimizer)
