"""Writes models to folders and Hub repositories, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from timm.models import save_for_hf
from torch import nn

from zoo.config.catalog import file_of
from zoo.errors import CheckpointError, ConfigError
from zoo.models.load import backbone_of
from zoo.models.stored import FOLDER, HUB, is_place
from zoo.nn.backbone import Backbone
from zoo.version import __version__
from zoo.weights.manifest import Checkpoint


def publish(model: nn.Module, target: str, entry: Checkpoint | None = None, private: bool = False) -> str:
    """Write a model, its configuration and a model card to a folder or repository, in timm's format.

    Args:
        model: from `zoo.create_model`; a shipped variant with or without overrides.
        target: `local-dir:folder`, which must be empty or absent, or `hf-hub:owner/name`, which is created if absent.
        entry: the published checkpoint that the weights come from.
        private: whether a newly created repository is private.

    Returns: Where it was written.

    Raises:
        ConfigError: if the model or the target cannot be published.
        CheckpointError: if the Hub refuses.
    """
    backbone = backbone_of(model)
    if file_of(backbone.config.source) is None:
        raise ConfigError(f"{backbone.config.source}: only shipped variants can be published, others have no name")
    place = target.removeprefix(HUB).removeprefix(FOLDER)
    if not is_place(target) or not place:
        raise ConfigError(f"target is {target!r}, expected {HUB}owner/name or {FOLDER}folder")
    if target.startswith(FOLDER):
        if Path(place).exists() and any(Path(place).iterdir()):
            raise ConfigError(f"{place}: is not empty")
        _write(backbone, Path(place), entry, target)
        return place
    with TemporaryDirectory() as folder:
        _write(backbone, Path(folder), entry, target)
        try:
            HfApi().create_repo(place, private=private, exist_ok=True)
            return str(HfApi().upload_folder(repo_id=place, folder_path=folder, commit_message="Add the model"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{target}: the Hub refused: {error}") from error


def _write(backbone: Backbone, folder: Path, entry: Checkpoint | None, target: str) -> None:
    config = backbone.config
    origin = {"tag": entry and entry.tag, "license": entry and entry.licence_weights}
    arguments, described = dict(config.overrides), {"pretrained_cfg": origin}
    save_for_hf(backbone, str(folder), model_config=described, model_args=arguments, safe_serialization=True)
    (folder / "README.md").write_text(card(backbone, entry, target), encoding="utf-8")


def card(backbone: Backbone, entry: Checkpoint | None, target: str) -> str:
    """The model card: what it is, how to use it, its figures, licence and provenance."""
    config = backbone.config
    licence = (entry and entry.licence_weights) or "other"
    name = target if target.startswith(HUB) else FOLDER + Path(target.removeprefix(FOLDER)).name
    size = " x ".join(map(str, config.img_size))
    lines = ["---", f"license: {licence.lower()}", "library_name: timm", "pipeline_tag: image-classification"]
    lines += ["tags: [image-classification, timm, zoo]", "---", "", f"# {config.name}", ""]
    lines += [f"A backbone of the family `{config.family}` for images of any size, trained at {size}.", "", "```python"]
    lines += ["import zoo", "", f'model = zoo.create_model("{name}").eval()']
    lines += [f'pyramid = zoo.create_model("{name}", features_only=True).eval()', "```", "", "or, with timm:", ""]
    lines += ["```python", "import timm, zoo.timm_models", "", f'model = timm.create_model("{name}", pretrained=True)']
    lines += ["```", "", "| | |", "|---|---|", f"| parameters | {_millions(backbone)} |"]
    lines += [f"| classes | {backbone.num_classes} |", f"| version of zoo | {__version__} |"]
    if config.overrides:
        lines += [f"| configuration | {json.dumps(dict(config.overrides))} |"]
    if entry is not None:
        lines += _provenance(entry)
    return "\n".join(lines) + "\n"


def _provenance(entry: Checkpoint) -> list[str]:
    top1 = f"{entry.top1 or entry.top1_timm} %" if entry.top1 or entry.top1_timm else "not published"
    rows = {
        "weights from": (entry.hub and f"https://huggingface.co/{entry.hub}") or entry.sources[0],
        "published checkpoint": entry.id,
        "sha256 of it": entry.sha256 or "not recorded",
        "trained on": entry.data,
        "top-1 on ImageNet-1k, as published": top1,
        "multiply-adds, as published": f"{entry.gmacs}e9 at {entry.img_size} x {entry.img_size}",
        "licence of the weights": entry.licence_weights or "not stated by their authors",
        "licence of the published code": entry.licence_code,
        "paper": entry.paper,
        "code": entry.code,
    }
    return [f"| {key} | {value} |" for key, value in rows.items()]


def _millions(backbone: Backbone) -> str:
    return f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.2f} M"
