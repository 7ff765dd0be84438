"""Two-stage training of EchoVLM on Ray Train and DeepSpeed."""

from echoray.train.checkpoint import load_checkpoint
from echoray.train.stage import export_checkpoint, train_stage

__all__ = ["export_checkpoint", "load_checkpoint", "train_stage"]
