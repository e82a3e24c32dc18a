"""Models as files for other runtimes: ONNX, OpenVINO, programs of torch.export, compiled packages."""

from zoo.export.deployment import Agreement, Deployment, agreement, deployment
from zoo.export.export import Exported, export, input_size
from zoo.export.runtimes import ExportError

__all__ = ["Agreement", "Deployment", "ExportError", "Exported", "agreement", "deployment", "export", "input_size"]
