"""Two-stage training of EchoVLM on Ray Train and DeepSpeed.

Importing this package loads no framework: Ray's controller and monitor processes import it too.
"""

from echoray.train.stage import export_checkpoint, load_checkpoint, train_stage

__all__ = ["export_checkpoint", "load_checkpoint", "train_stage"]
