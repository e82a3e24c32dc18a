"""Branch, Block, Stage: the one residual abstraction of every family."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.config.model import BranchConfig, Norm, StageConfig
from zoo.errors import ConfigError
from zoo.kernels.backends import as_forced, forced
from zoo.kernels.exporting import export_safe
from zoo.nn.layers import cpu
from zoo.nn.layers.drop_path import DropPath
from zoo.nn.layers.norm import build_norm
from zoo.nn.parts import Embed, InputFoldable
from zoo.nn.registry import BRANCHES, CONTEXTS, EMBEDS, SHORTCUTS

Context = Mapping[str, torch.Tensor]


class Branch(nn.Module):
    """y = shortcut(x) + drop_path(gamma * post_norm(fn(norm(x)))) on (B, H, W, dim_in).

    Attributes:
        reads, writes: names of the additional tensors that `fn` receives, and of those for which it returns new values.
    """

    def __init__(self, config: BranchConfig, dim_in: int, dim: int, drop_path: float) -> None:
        super().__init__()
        if config.shortcut is not None and not config.residual:
            raise ConfigError(f"{config.part.where}: a branch that is not residual has no shortcut")
        self.reads, self.writes = config.reads, config.writes
        self.norm = build_norm(config.norm, dim_in)
        self.fn: nn.Module = BRANCHES.build(config.part, dim_in=dim_in, dim=dim)
        self.of_nchw = isinstance(self.fn, nn.Conv2d)
        self.post_norm = build_norm(config.post_norm, dim)
        self.gamma = None
        if config.layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((dim,), config.layer_scale))
        self.drop_path = DropPath(drop_path if config.drop_path else 0.0)
        self.shortcut: nn.Module | None = nn.Identity() if config.residual else None
        if config.shortcut is not None:
            self.shortcut = SHORTCUTS.build(config.shortcut, dim_in=dim_in, dim=dim)
        self.reduction: int = getattr(self.fn, "reduction", 1)
        reduction = getattr(self.shortcut, "reduction", 1)
        if config.residual and (self.reduction != reduction or (dim_in != dim and config.shortcut is None)):
            raise ConfigError(
                f"{config.part.where}: {config.part.type!r} reduces {self.reduction}x and goes from {dim_in} to {dim} "
                "channels, and its shortcut does not: give it one that does the same, such as {type: pool}"
            )

    def forward(self, x: torch.Tensor, known: Context | None = None) -> torch.Tensor | tuple[torch.Tensor, Context]:
        """The map and, if the branch writes, the context with its new values."""
        y = cpu.normed(self.norm, x)
        if known is None:
            y = cpu.conv(self.fn, y) if self.of_nchw else self.fn(y)
        else:
            y = self.fn(y, **{name: {**known, "branch": x}[name] for name in self.reads})
        if not self.writes:
            return self._add(x, y)
        y, *values = y
        return self._add(x, y), {**(known or {}), **dict(zip(self.writes, values, strict=True))}

    def _add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y = cpu.normed(self.post_norm, y)
        if self.gamma is not None:
            y = y * self.gamma
        y = self.drop_path(y)
        return y if self.shortcut is None else self.shortcut(x) + y

    def fold(self) -> None:
        """Fold a batch norm into the following layer, if that is linear."""
        if isinstance(self.fn, InputFoldable):
            self.norm = self.fn.fold_input(self.norm)


class Block(nn.Sequential):
    """Named branches in order; the first may change width and resolution."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Branch]: ...  # type: ignore[override]  # no other module is put into a block

    def __init__(self, branches: Sequence[BranchConfig], dim_in: int, dim: int, drop_path: float) -> None:
        super().__init__()
        for config in branches:
            if hasattr(self, config.name):
                raise ConfigError(f"{config.part.where}: the name {config.name!r} is taken, choose another")
            self.add_module(config.name, Branch(config, dim_in, dim, drop_path))
            dim_in = dim

    def forward(self, x: torch.Tensor, context: Context | None = None) -> torch.Tensor | tuple[torch.Tensor, Context]:
        """The map and, if there is a context, the context as updated by the branches."""
        start, now = x, context or {}
        for branch in self:
            if branch.writes:
                x, now = branch(x, {**now, "block": start})
            else:
                x = branch(x, {**now, "block": start}) if branch.reads else branch(x)
        return x if context is None else (x, now)


class Stage(nn.Module):
    """An embed, then blocks, on (B, dim_in, H, W); inside, maps are (B, H, W, C).

    Args:
        drop_path: the rate of each block.
        widths: channels of all previous stages.

    Attributes:
        norm: applied to the map before the next stage; `forward` leaves this to the caller.
        after: index of the stage whose map is the input; None for the previous one.
        exportable: run everything in its exported form.
        images_at_once: larger batches run in parts in inference on a CPU, so that maps stay in the cache; None for all.
        reduction: how many times smaller than the input the output is on each axis.
    """

    def __init__(
        self,
        config: StageConfig,
        dim_in: int,
        drop_path: Sequence[float],
        norm: Norm | None = None,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Identity()
        if config.embed is not None:
            self.embed = embed = cast(Embed, EMBEDS.build(config.embed, dim_in=dim_in, dim=config.dim))
            dim_in = embed.dim
        self.blocks = nn.ModuleList()
        for branches, rate in zip(config.blocks, drop_path, strict=True):
            if not branches and dim_in != config.dim:
                raise ConfigError(f"{config.where}: block 0 has no branch that could go from {dim_in} to {config.dim}")
            self.blocks.append(Block(branches, dim_in, config.dim, rate))
            dim_in = config.dim
        self.norm = build_norm(norm, config.dim)
        self.after = config.after
        self.context: nn.Module | None = None
        if config.context is not None:
            self.context = CONTEXTS.build(config.context, dim_in=config.dim, dim=config.dim, widths=tuple(widths))
        _check_names(config, getattr(self.context, "names", ()))
        steps = [branch.reduction for block in self.blocks for branch in cast(Block, block)]
        self.reduction: int = getattr(self.embed, "reduction", 1) * math.prod(steps)
        self.grad_checkpointing = self.exportable = False
        self.images_at_once: int | None = None

    def forward(
        self, x: torch.Tensor, outputs: Sequence[tuple[torch.Tensor, Context]] = ()
    ) -> torch.Tensor | tuple[torch.Tensor, Context]:
        """(B, dim_in, H, W) to (B, dim, H / reduction, W / reduction), both preferably channels_last.

        Args:
            outputs: map and context of every previous stage, for a stage with a context, which also returns both.
        """
        if self.context is None:
            return cpu.in_parts(self, self._map, x, self.images_at_once)
        x = self._run(self.embed, x.permute(0, 2, 3, 1).contiguous())
        context = self._run(self.context, x, [(y.permute(0, 2, 3, 1), known) for y, known in outputs])
        for block in self.blocks:
            x, context = self._run_block(block, x, context)
        return x.permute(0, 3, 1, 2), context

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        x = self._run(self.embed, x.permute(0, 2, 3, 1).contiguous())
        for block in self.blocks:
            x = self._run_block(block, x)
        return x.permute(0, 3, 1, 2)

    def _run_block(self, block: nn.Module, *inputs: Any) -> Any:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run_by, forced(), block, *inputs, use_reentrant=False)
        return self._run(block, *inputs)

    def _run_by(self, backend: str | None, module: nn.Module, *inputs: Any) -> Any:
        """`_run` with the backend of the forward pass, because recomputation may happen in another thread."""
        with as_forced(backend):
            return self._run(module, *inputs)

    def _run(self, module: nn.Module, *inputs: Any) -> Any:
        if not self.exportable:
            return module(*inputs)
        with export_safe():
            return module(*inputs)


class Stages(nn.ModuleList):
    """The stages of a backbone, which runs them one by one and applies the norms between them."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]  # no other module is put among the stages
        def __getitem__(self, idx: int) -> Stage: ...
        @overload
        def __getitem__(self, idx: slice) -> Stages: ...
        def __getitem__(self, idx: int | slice) -> Stage | Stages: ...
        def __iter__(self) -> Iterator[Stage]: ...  # type: ignore[override]  # as above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refused: chaining the stages alone would omit the norms that some variants have between them.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "the stages of a zoo model are not a layer of their own: take model.forward_features(images), "
            "model.forward_intermediates(images) or zoo.create_model(..., features_only=True) for its maps, or replace "
            "the classifier by model.head = nn.Identity()"
        )


def _check_names(config: StageConfig, names: Sequence[str]) -> None:
    """Refuse a branch that reads or writes a tensor that nothing computes."""
    for branch in (branch for block in config.blocks for branch in block):
        for kind, allowed in (("reads", ("block", "branch", *names)), ("writes", tuple(names))):
            for name in getattr(branch, kind):
                if name not in allowed:
                    raise (branch.part.where / kind).unknown(name, allowed, "tensor of the context")
