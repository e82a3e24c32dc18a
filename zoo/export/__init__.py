"""Models as files for other runtimes: ONNX, programs of torch.export, compiled packages."""

from zoo.export.deployment import Deployment, deployment
from zoo.export.export import Exported, export
from zoo.export.runtimes import ExportError

__all__ = ["Deployment", "ExportError", "Exported", "deployment", "export"]
