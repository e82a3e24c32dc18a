"""Backbone: stages, head, features and timm's model methods, written once for every family."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import nn

import zoo.nn.embeds
import zoo.nn.ffns
import zoo.nn.mixers  # noqa: F401 - these three register their parts
from zoo.config.model import ModelConfig
from zoo.config.schema import Count, Index, Range, Rate, check
from zoo.errors import Where
from zoo.nn.block import Context, Stage, Stages
from zoo.nn.dilate import dilate
from zoo.nn.head import Head
from zoo.nn.init import SCHEMES, initialise
from zoo.nn.layers.norm import build_norm, norm_maps
from zoo.nn.masked import run_per_image


class Backbone(nn.Module):
    """A hierarchical vision backbone built from a `ModelConfig`.

    Images, maps between stages and returned maps are NCHW; inside the stages tensors are (B, H, W, C).

    Attributes:
        levels: indices of the stages whose maps are returned, including the last stage.
        reductions: for each stage, image pixels per map position.
        feature_info: channels, reduction and module of each returned map.

    Args:
        config: the variant.
        num_classes: width of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: "avg", or "" to keep every position.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first; None for the
            variant's own.
        level_norm: give each stage's map a norm of its own, as the published detectors do; `norm=True` of
            `forward_intermediates` applies it. A variant with a norm at the end of every stage uses that norm.

    Raises:
        ConfigError: if the parts of the configuration do not fit together.
        ValueError: for a wrong argument.
    """

    pretrained_cfg: dict[str, Any]

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        level_norm: bool = False,
    ) -> None:
        super().__init__()
        check(num_classes, Index, Where("num_classes"))
        check(in_chans, Count, Where("in_chans"))
        check(drop_rate, Rate, Where("drop_rate"))
        check(drop_path_rate, Rate | None, Where("drop_path_rate"))
        if config.output_stride is not None:
            config = _dilated(config)
        self.config = config
        check(level_norm, bool, Where("level_norm"))
        self.num_classes, self.in_chans = num_classes, in_chans
        self.frozen = 0
        rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        rates = torch.linspace(0, rate, sum(len(s.blocks) for s in config.stages), device="cpu").tolist()
        self.stages = Stages()
        self.feature_info: list[dict[str, Any]] = []
        sizes = [(in_chans, 1)]
        for i, stage in enumerate(config.stages):
            norm = config.stage_norm if i + 1 < len(config.stages) else None
            dim_in, reduction = sizes[-1 if stage.after is None else stage.after + 1]
            widths = [width for width, _ in sizes[1:]]
            self.stages.append(Stage(stage, dim_in, [rates.pop(0) for _ in stage.blocks], norm, widths))
            sizes.append((stage.dim, reduction * self.stages[-1].reduction))
            if stage.level:
                level = {"num_chs": stage.dim, "reduction": sizes[-1][1], "module": f"stages.{i}"}
                self.feature_info.append(level)
        dim = self.num_features = sizes[-1][0]
        self.reductions = [reduction for _, reduction in sizes[1:]]
        self.levels = [i for i, stage in enumerate(config.stages) if stage.level]
        self.norm = build_norm(config.head.norm, dim) if config.head.order == "norm_pool" else nn.Identity()
        self.level_norms: nn.ModuleList | None = None
        if level_norm and config.stage_norm is None:
            norms = zip(config.level_norm, config.stages, strict=True)
            self.level_norms = nn.ModuleList(
                build_norm(norm if stage.level else None, stage.dim) for norm, stage in norms
            )
        self.head = Head(config.head, dim, num_classes, global_pool, drop_rate)
        if config.init not in SCHEMES:
            raise (config.where / "init").unknown(config.init, SCHEMES, "scheme")
        initialise(self, config.init)

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input features."""
        return self.head.hidden_dim

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Images (B, in_chans, H, W) of any size to logits (B, num_classes); `mask` as in `forward_intermediates`."""
        if mask is not None:
            return run_per_image(lambda images: [self.forward(images)], x, mask, self._strides([self.levels[-1]]))[0]
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images to the normalised map of the last stage, (B, num_features, H / 32, W / 32)."""
        return self._maps(x, (), len(self.stages), norm=False)[-1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """A map of `forward_features` to logits, or to the pooled features before the classifier."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NHWC"] = "NCHW",
        intermediates_only: bool = False,
        mask: torch.Tensor | None = None,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps at the end of the chosen stages.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to return, negative ones from the end; n for the last n; None for all.
            norm: apply to each map its own norm: that of `level_norm`, or the variant's at the end of the stage.
            stop_early: do not run the stages after the last requested one.
            output_fmt: layout of the maps.
            intermediates_only: return only the maps.
            mask: (B, H, W), true where a pixel belongs to the image and not to the padding at its right and bottom.
                Each image is then run on its own: its maps are those without padding, and zero in the padding.

        Returns:
            The result of `forward_features` and the list of maps, or the list alone.

        Raises:
            ValueError: if images, indices, output_fmt or mask are invalid.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, expected 'NCHW' or 'NHWC'")
        take = [self.levels[i] for i in self._take_indices(indices)]
        count = max(take) + 1 if stop_early else len(self.stages)
        if mask is None:
            found = self._maps(x, take, count, norm)
        else:
            strides = self._strides([*sorted(set(take)), count - 1])
            found = run_per_image(lambda images: self._maps(images, take, count, norm), x, mask, strides)
        *maps, last = found if output_fmt == "NCHW" else [y.permute(0, 2, 3, 1) for y in found]
        return maps if intermediates_only else (last, maps)

    def _maps(self, x: torch.Tensor, take: Sequence[int], count: int, norm: bool) -> list[torch.Tensor]:
        """The maps of the stages in `take`, then that of the last of `count` stages with its norm."""
        self._check(x)
        maps: list[torch.Tensor] = []
        outputs: list[tuple[torch.Tensor, Context]] = []
        for i, stage in enumerate(self.stages[:count]):
            seen = x if stage.after is None else outputs[stage.after][0]
            x, context = (stage(seen), {}) if stage.context is None else stage(seen, outputs)
            if i in take:
                maps.append(self._level(i, x) if norm else x)
            x = norm_maps(stage.norm, x)
            if self.config.branching:
                outputs.append((x, context))
        if count == len(self.stages):
            x = norm_maps(self.norm, x)
        return [*maps, x]

    def _level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The map of stage `i`, with its norm, as it is returned."""
        if self.level_norms is not None:
            return norm_maps(self.level_norms[i], x)
        x = norm_maps(self.stages[i].norm, x)
        return norm_maps(self.norm, x) if i == len(self.stages) - 1 else x

    def _strides(self, stages: Sequence[int]) -> list[int]:
        return [self.reductions[i] for i in stages]

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"the input is {tuple(x.shape)}, expected images of shape (B, {self.in_chans}, H, W)")

    def _take_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.levels)
        if indices is None or isinstance(indices, int):
            indices = range(-(count if indices is None else indices), 0)
        if not indices or not all(-count <= i < count for i in indices):
            raise ValueError(f"indices are {list(indices)}, expected at least one from {-count} to {count - 1}")
        return [i % count for i in indices]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one in `indices`, the head, and norms without use; returns the indices."""
        take = self._take_indices(indices)
        last = self.levels[max(take)]
        pruned = last + 1 < len(self.stages)
        self.stages, self.levels = self.stages[: last + 1], self.levels[: max(take) + 1]
        if prune_norm or pruned or (prune_head and self.level_norms is not None):
            self.norm = nn.Identity()
        if prune_norm:
            self.stages[-1].norm, self.level_norms = nn.Identity(), None
        if self.level_norms is not None:
            self.level_norms = nn.ModuleList(
                norm if i in {self.levels[j] for j in take} else nn.Identity()
                for i, norm in enumerate(self.level_norms[: last + 1])
            )
        if prune_head or pruned:
            self.head.remove_hidden()
            self.num_features = self.head.hidden_dim = self.feature_info[max(take)]["num_chs"]
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for `num_classes`, or remove it (0)."""
        check(num_classes, Index, Where("num_classes"))
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        SCHEMES[self.config.init]("head.fc", self.head.fc, False)
        self.head.fc.to(next(self.stages.parameters()))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def freeze(self, stages: int) -> None:
        """Freeze the first `stages` stages, including the stem; 0 unfreezes everything. See `zoo.freeze`."""
        check(stages, Annotated[int, Range(0, len(self.stages))], Where("stages"))
        for i, stage in enumerate(self.stages):
            if i < max(stages, self.frozen):
                stage.requires_grad_(i >= stages)
        self.frozen = stages
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode, except that batch norms and stochastic depth of frozen stages stay in evaluation mode."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the family's recipe never decays."""
        names = [name for name, _ in self.named_parameters()]
        return {name for pattern in self.config.no_weight_decay for name in fnmatch.filter(names, pattern)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's parameter groups: the stem, then each stage (`coarse`) or each block in order."""
        blocks: list[tuple[str, tuple[int] | None]] = [(r"^stages\.(\d+)", None)]
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.embed", (-1,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ]
        last = r"^norm|^level_norms|^head\.norm|^head\.pre_logits"
        return {"stem": r"^stages\.0\.embed", "blocks": [*blocks, (last, (99999,))]}


def _dilated(config: ModelConfig) -> ModelConfig:
    plain = replace(config, output_stride=None)
    with torch.device("meta"):
        strides = [stage.reduction for stage in Backbone(plain).stages]
    return dilate(plain, strides, config.output_stride or 0)
