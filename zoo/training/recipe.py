"""Recipes: what a training run does, as YAML and as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from zoo.config.catalog import CONFIG_DIR, parse_yaml, read_yaml
from zoo.config.schema import Count, Index, Positive, Range, Rate, Size, check_mapping, dataclass_from_yaml
from zoo.errors import ConfigError, Where, shorten

RECIPE_DIR = CONFIG_DIR / "recipes"
Share = Annotated[float, Range(0.0, 1.0)]
Amount = Annotated[float, Range(0.0, 1e6)]
NEVER_REPEATED = ("epochs", "workers", "micro_batch", "log_every", "save_steps", "fsdp")
"""Keys that a resumed run may change."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Each attribute is a key of the YAML file and of `--set`.

    Attributes:
        model: as for `zoo.create_model`.
        overrides: configuration keys of the model.
        checkpoint, pretrained: source of the initial weights; random without either.
        data: an ImageFolder, perhaps with `train` and `validation` folders in it; a tar file, or a folder of tar files,
            one per class or in WebDataset's format; `hfds/NAME` for a data set of Hugging Face; `digits`.
        train_split, val_split: names of the splits; None for the usual ones.
        val_share: share of the images held out if there is no validation split.
        classes: `imagenette`, `imagewoof`, `imagenet100`, or a text file of class names or of image files.
        max_bad_share: share of unreadable images above which the run stops.
        in_chans: channels of the images: 3 for RGB, to which any picture is converted; otherwise those of the files.
        img_size: (height, width); None for the model's own.
        epochs: passes over the training images.
        batch_size: images per optimiser step, over all processes.
        micro_batch: images that a process runs at once; None for its whole share, halved when memory runs out.
        workers: image reading processes per training process.
        optimizer, scheduler: timm's names.
        lr: learning rate for `lr_base` images per step; scaled linearly with `batch_size`.
        min_lr, warmup_lr: learning rate at the end and at the start, scaled likewise.
        warmup_epochs: epochs of linear increase; at most all epochs but one.
        weight_decay: for the parameters that the model's family decays; all families were published with 0.05.
        layer_decay: factor of the learning rate from one block to the one before; None for none.
        clip_grad: maximum norm of the gradient; None for no limit.
        freeze: number of frozen stages, from the stem; `backbone` for everything except the classifier.
        drop_path_rate: None for the published rate of the variant.
        drop_rate: dropout before the classifier.
        label_smoothing, mixup, cutmix: strengths; mixup and cutmix are the alphas of their Beta distributions.
        mix_prob: probability that a batch is mixed.
        crop_scale: minimum and maximum share of an image's area in a random crop.
        crop_ratio: minimum and maximum aspect ratio of the crop.
        hflip: probability of horizontal flipping.
        color_jitter: strength; used if `auto_augment` is none.
        auto_augment: policy in timm's notation, as in `rand-m9-mstd0.5-inc1`.
        random_erasing: probability.
        crop_pct, interpolation, mean, std: of the input; None for the model's own. mean and std are one number or one
            per channel.
        ema: decay of the averaged weights; None for none.
        amp: precision of the forward pass.
        compile, channels_last, grad_checkpointing: speed and memory.
        deterministic: refuse non-deterministic algorithms.
        fsdp: shard the model over the processes.
        early_stop: epochs without better accuracy after which the run ends; None for never.
        seed: for weights, order, augmentation and dropout.
        log_every: steps between two lines of the log.
        save_steps: steps between saved states within an epoch, in addition to its end; None for none.
    """

    model: str
    data: str
    overrides: Any = field(default_factory=dict)
    checkpoint: str | None = None
    pretrained: bool = False
    train_split: str | None = None
    val_split: str | None = None
    val_share: Annotated[float, Range(0.01, 0.9)] = 0.1
    classes: str | None = None
    max_bad_share: Share = 0.2
    in_chans: Count = 3
    img_size: Size | None = None
    epochs: Count = 30
    batch_size: Count = 64
    micro_batch: Count | None = None
    workers: Index = 2
    optimizer: str = "adamw"
    scheduler: Literal["cosine", "poly", "tanh", "constant"] = "cosine"
    lr: Positive = 1e-3
    lr_base: Count = 1024
    min_lr: Amount = 1e-5
    warmup_lr: Amount = 1e-6
    warmup_epochs: Index = 0
    weight_decay: Amount = 0.05
    layer_decay: Annotated[float, Range(0.01, 1.0)] | None = None
    clip_grad: Positive | None = None
    freeze: Literal["backbone"] | Index = 0
    drop_path_rate: Rate | None = None
    drop_rate: Rate = 0.0
    label_smoothing: Rate = 0.1
    mixup: Amount = 0.0
    cutmix: Amount = 0.0
    mix_prob: Share = 1.0
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    hflip: Share = 0.5
    color_jitter: Share = 0.4
    auto_augment: str | None = None
    random_erasing: Share = 0.0
    crop_pct: Annotated[float, Range(0.1, 1.0)] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[Positive, ...] | Positive | None = None
    ema: Annotated[float, Range(0.0, 0.999999)] | None = None
    amp: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    deterministic: bool = False
    fsdp: bool = False
    early_stop: Count | None = None
    seed: Index = 0
    log_every: Count = 50
    save_steps: Count | None = None

    @property
    def lr_scale(self) -> float:
        """The factor for `lr`, `min_lr` and `warmup_lr`."""
        return self.batch_size / self.lr_base

    def to_yaml(self) -> str:
        """The recipe as YAML, from which it can be loaded again."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        plain["overrides"] = dict(self.overrides)
        return yaml.safe_dump(plain, sort_keys=False)


def pieces(recipe: Recipe, processes: int) -> list[int]:
    """The sizes of the micro-batches that a process runs in one step."""
    share = recipe.batch_size // processes
    micro = min(recipe.micro_batch or share, share)
    return [min(micro, share - start) for start in range(0, share, micro)]


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPE_DIR.glob("*.yaml"))}


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe, or one in a file, with some of its keys changed.

    Raises:
        ConfigError: for an unknown recipe or key, or a value that is not allowed.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in recipes():
            raise Where("recipe").unknown(str(name), recipes(), "recipe")
        path = recipes()[str(name)]
    tree, where = read_yaml(path), Where(str(path))
    changes = dict(changes or {})
    for key in changes:
        if key not in (known := [f.name for f in dataclasses.fields(Recipe)]):
            raise Where("--set").unknown(key, known)
    for key in ("model", "data"):
        if tree.get(key) is None and changes.get(key) is None:
            raise ConfigError(f"{where}: has no {key}: pass --{key}")
    recipe = dataclass_from_yaml(Recipe, {**tree, **changes}, where)
    check_mapping(recipe.overrides, where / "overrides")
    if recipe.pretrained and recipe.checkpoint:
        raise ConfigError(f"{where}: pretrained and checkpoint both name weights, expected one of them")
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(recipe, key)
        if low > high:
            raise (where / key).error([low, high], "the smaller number first")
    channelwise = {key: _per_channel(key, getattr(recipe, key), recipe.in_chans, where) for key in ("mean", "std")}
    return dataclasses.replace(recipe, **channelwise)


def _per_channel(
    key: str, value: tuple[float, ...] | float | None, channels: int, where: Where
) -> tuple[float, ...] | None:
    if value is None:
        return None
    found = value if isinstance(value, tuple) else (value,) * channels
    if len(found) != channels:
        raise (where / key).error(list(found), f"one number or {channels}, as in_chans is {channels}")
    return found


def parse_setting(text: str) -> tuple[str, Any]:
    """The key and value of `key=value`; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--set {shorten(text)}: expected KEY=VALUE")
    try:
        return key.strip(), parse_yaml(value)
    except ConfigError as error:
        raise ConfigError(f"--set {shorten(text)}: the value is {error}") from error


def fingerprint(recipe: Recipe) -> str:
    """What must be equal in two parts of one run."""
    return json.dumps(_fixed(recipe), sort_keys=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Settings in which a resumed run differs from the original, although it may not."""
    now = _fixed(new)
    return [f"{key}: {then!r}, now {now[key]!r}" for key, then in _fixed(old).items() if then != now[key]]


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """The settings that a resumed run may not change."""
    return {key: value for key, value in vars(recipe).items() if key not in NEVER_REPEATED}
