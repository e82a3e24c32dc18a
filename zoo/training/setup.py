"""Creates the parts of a run from its recipe and checks them before the first step."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.data import Mixup
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from zoo.config.catalog import file_of, tree_of
from zoo.errors import ConfigError, Where
from zoo.files import write_text
from zoo.models.create import create_model
from zoo.models.load import backbone_of
from zoo.models.param_groups import parameter_groups
from zoo.nn.backbone import Backbone
from zoo.training.data.augmentation import training_transform
from zoo.training.data.classes import describe
from zoo.training.data.digits import write_digits
from zoo.training.data.loading import ImageSet, TrainingOrder, loader, validation_loader
from zoo.training.data.splits import Split, open_splits
from zoo.training.norms import check_single_images
from zoo.training.randomness import seed_all
from zoo.training.recipe import Recipe, pieces
from zoo.training.sharding import shard
from zoo.vision.images import input_config


@dataclass
class Parts:
    """The parts that the training loop uses.

    Attributes:
        model: the model, wrapped for several processes; `backbone` is the one inside.
        train, validation: the images, and loaders of them in the order of this process.
        data: the `identity` of both splits.
        described: input transform and classes, in timm's terms.
        model_name: name of the model in checkpoints.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module
    backbone: Backbone
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEmaV3 | None
    mixup: Mixup | None
    train: Split
    validation: Split
    data: dict[str, Any]
    train_loader: DataLoader
    validation_loader: DataLoader
    described: dict[str, Any]
    model_name: str
    fsdp: bool

    @property
    def order(self) -> TrainingOrder:
        """The order of the training batches."""
        return cast(TrainingOrder, self.train_loader.batch_sampler)


def make_accelerator(amp: str = "no", fsdp: bool = False) -> tuple[Accelerator, bool]:
    """accelerate's view of devices and processes; whether `fsdp` or `accelerate launch --use_fsdp` asks for sharding.

    The sharding itself is `fully_shard`, which also runs on CPUs, so accelerate does not know about it.

    Raises:
        ConfigError: if the devices do not support what is requested.
    """
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true" or fsdp
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cpu = several and not (torch.cuda.is_available() or torch.xpu.is_available())
    if amp == "fp16" and (cpu or not torch.accelerator.is_available()):
        raise ConfigError("amp is 'fp16', which needs a GPU; 'bf16' runs everywhere")
    if fsdp and not several:
        raise ConfigError("fsdp shards a model over processes and there is one: use torchrun or accelerate launch")
    AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
    return Accelerator(mixed_precision=amp, cpu=cpu), fsdp


def assemble(recipe: Recipe, output: Path) -> Parts:
    """Every part of a run.

    Raises:
        ConfigError: for any error in the recipe, the data or the devices.
        CheckpointError: if weights cannot be obtained or do not fit.
    """
    accelerator, fsdp = make_accelerator(recipe.amp, recipe.fsdp)
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    with accelerator.main_process_first():  # it writes digits, or the index of a data set
        if recipe.data == "digits":
            write_digits(output / "digits")
        train, validation = open_splits(_with_digits(recipe, output))
    _check(recipe, train, accelerator.num_processes, fsdp)
    backbone, name = _model(recipe, train.classes, output, accelerator)
    backbone = backbone.to(accelerator.device).to(memory_format=_memory_format(recipe))
    optimizer_of = _optimizer_maker(recipe)
    config = _input_config(recipe, backbone)
    if min(pieces(recipe, accelerator.num_processes)) == 1:
        check_single_images(backbone, config["input_size"])
    ema = ModelEmaV3(backbone, recipe.ema, use_warmup=True) if recipe.ema is not None else None
    if recipe.compile:
        backbone.compile()
    model, optimizer = _distribute(backbone, optimizer_of, accelerator, fsdp)
    train_loader, validation_loader = _loaders(recipe, config, train, validation, accelerator)
    return Parts(
        recipe,
        accelerator,
        model,
        backbone,
        optimizer,
        _scheduler(recipe, optimizer, cast(TrainingOrder, train_loader.batch_sampler).steps),
        ema,
        _mixup(recipe, len(train.classes)),
        train,
        validation,
        {"training": train.identity(), "validation": validation.identity()},
        train_loader,
        validation_loader,
        _describe(config, train.classes),
        name,
        fsdp,
    )


def _with_digits(recipe: Recipe, output: Path) -> Recipe:
    return replace(recipe, data=str(output / "digits")) if recipe.data == "digits" else recipe


def _check(recipe: Recipe, train: Split, processes: int, fsdp: bool) -> None:
    if recipe.batch_size > len(train):
        raise ConfigError(f"batch_size is {recipe.batch_size}, more than the {len(train)} training images")
    if recipe.batch_size % processes:
        raise ConfigError(f"batch_size is {recipe.batch_size}, expected a multiple of the {processes} processes")
    if (recipe.mixup or recipe.cutmix) and recipe.batch_size // processes % 2:
        raise ConfigError("mixup and cutmix mix pairs: batch_size for each process must be even")
    if recipe.ema is not None and fsdp:
        raise ConfigError("ema keeps a whole copy of the model, which fsdp is to avoid: use one of them")
    if fsdp and recipe.amp == "fp16":
        raise ConfigError("amp is 'fp16', which is not scaled under fsdp, expected 'bf16' or 'no'")


def _model(recipe: Recipe, classes: tuple[str, ...], output: Path, accelerator: Accelerator) -> tuple[Backbone, str]:
    """The model with its weights, and the name under which its checkpoints are loaded."""
    seed_all(recipe.seed)
    with accelerator.main_process_first():  # it downloads, if necessary
        model = backbone_of(
            create_model(
                recipe.model,
                recipe.pretrained,
                checkpoint=recipe.checkpoint,
                num_classes=len(classes),
                in_chans=None if recipe.in_chans == 3 else recipe.in_chans,  # three is the default
                drop_path_rate=recipe.drop_path_rate,
                drop_rate=recipe.drop_rate,
                img_size=recipe.img_size,
                overrides=dict(recipe.overrides),
            )
        )
    if model.in_chans != recipe.in_chans:
        raise ConfigError(f"the weights are for {model.in_chans} channels: pass --set in_chans={model.in_chans}")
    if tuple(model.pretrained_cfg.get("label_names") or classes) != classes:
        model.reset_classifier(len(classes))  # the same number of classes, but different ones
    if recipe.freeze == "backbone":
        model.requires_grad_(False).freeze(len(model.stages))
        model.get_classifier().requires_grad_(True)
    elif recipe.freeze:
        model.freeze(recipe.freeze)
    model.set_grad_checkpointing(recipe.grad_checkpointing)
    if file_of(model.config.source):
        return model, model.config.source
    if accelerator.is_main_process:
        write_text(output / "model.yaml", yaml.safe_dump(tree_of(model.config.source), sort_keys=False))
    return model, "model.yaml"


def _optimizer_maker(recipe: Recipe) -> Any:
    if recipe.optimizer not in (known := list(map(str, list_optimizers()))):
        raise Where("optimizer").unknown(recipe.optimizer, known, "optimizer")

    def make(backbone: Backbone) -> torch.optim.Optimizer:
        groups = parameter_groups(backbone, recipe.weight_decay, recipe.layer_decay)
        try:
            return create_optimizer_v2(groups, recipe.optimizer, lr=recipe.lr * recipe.lr_scale, weight_decay=0.0)
        except (AssertionError, ImportError, ModuleNotFoundError, TypeError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(f"optimizer is {recipe.optimizer!r}, which cannot be made here: {reason}") from error

    return make


def _distribute(
    backbone: Backbone, optimizer_of: Any, accelerator: Accelerator, fsdp: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    if not fsdp:
        return accelerator.prepare(backbone, optimizer_of(backbone))
    mesh = torch.distributed.init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    shard(backbone, mesh)
    return backbone, optimizer_of(backbone)


def _loaders(
    recipe: Recipe, config: dict[str, Any], train: Split, validation: Split, accelerator: Accelerator
) -> tuple[DataLoader, DataLoader]:
    place = accelerator.process_index, accelerator.num_processes
    images = ImageSet(train, training_transform(recipe, config), config["input_size"], recipe.seed)
    order = TrainingOrder(len(train), recipe.batch_size, recipe.seed, *place)
    share = recipe.batch_size // accelerator.num_processes
    return (
        loader(images, order, recipe.workers, accelerator.device.type == "cuda"),
        validation_loader(validation, config, share, recipe.workers, accelerator),
    )


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """timm's scheduler, stepped after each of the `steps` of an epoch."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        recipe.scheduler,
        num_epochs=recipe.epochs,
        min_lr=recipe.min_lr * recipe.lr_scale,
        warmup_lr=recipe.warmup_lr * recipe.lr_scale,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs - 1),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler


def _mixup(recipe: Recipe, classes: int) -> Mixup | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        recipe.mixup, recipe.cutmix, prob=recipe.mix_prob, label_smoothing=recipe.label_smoothing, num_classes=classes
    )


def _memory_format(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.channels_last else torch.preserve_format


def _input_config(recipe: Recipe, model: Backbone) -> dict[str, Any]:
    """The input transform: from the recipe, otherwise from the training of the model's weights."""
    own = {key: getattr(recipe, key) for key in ("mean", "std", "interpolation", "crop_pct")}
    return input_config(model) | {key: value for key, value in own.items() if value is not None}


def _describe(config: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {key: config[key] for key in keys} | {"label_names": classes, "label_descriptions": describe(classes)}
