"""Tools that explain what a model saw, by hooks and gradients."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from tests.compat.conftest import IMAGES


def class_map(model: nn.Module) -> torch.Tensor:
    """Grad-CAM from its definition: the maps of the last stage, weighted by the mean gradient of their channel."""
    kept = {}
    handle = model.stages[-1].register_forward_hook(lambda module, inputs, output: kept.update(maps=output))
    score = model(IMAGES)[:, 3].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["maps"])
    return (kept["maps"] * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()


def test_grad_cam_of_the_last_stage(model: nn.Module) -> None:
    expected = class_map(model)
    with GradCAM(model, [model.stages[-1]]) as cam:
        found = torch.from_numpy(cam(IMAGES, [ClassifierOutputTarget(3)] * 2))
    rows, columns = (
        torch.linspace(0, n - 1, m).round().long() for n, m in zip(IMAGES.shape[2:], expected.shape[1:], strict=True)
    )
    assert found.shape == (2, *IMAGES.shape[2:])
    corners = found[:, rows][:, :, columns].flatten(1).numpy()
    for ours, theirs in zip(corners, expected.flatten(1).numpy(), strict=True):
        assert not theirs.std() or np.corrcoef(ours, theirs)[0, 1] > 0.8


def test_captum(model: nn.Module) -> None:
    attributed = LayerGradCam(model, model.stages[-1]).attribute(IMAGES, target=3, relu_attributions=True)
    torch.testing.assert_close(attributed[:, 0], class_map(model), rtol=1e-3, atol=1e-6)
    pixels = IntegratedGradients(model).attribute(IMAGES, target=0, n_steps=4)
    assert pixels.shape == IMAGES.shape
    assert pixels.abs().sum() > 0


def test_grad_cam_of_a_batch_norm(family: str, model: nn.Module) -> None:
    """A layer of NCHW in the middle of a block, which inference would fold away."""
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    assert norms or family not in ("maxvit", "litv2")
    for norm in norms[-1:]:
        with GradCAM(model, [norm]) as cam:
            assert cam(IMAGES, [ClassifierOutputTarget(3)] * 2).shape == (2, *IMAGES.shape[2:])
