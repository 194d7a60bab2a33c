"""Between batches: commands are carried out, verified and answered here.

`Steering` is the one door in; `Training` is what it needs of whoever runs the training. Everything runs on the
training's own thread, between two batches. No socket, no recording and no terminal is known here.
"""

from client_callback.steering.describe import describe_optimizer
from client_callback.steering.optimizers import optimizer_catalogue
from client_callback.steering.steering import Steering
from client_callback.steering.training import Refused, Training

__all__ = ["Refused", "Steering", "Training", "describe_optimizer", "optimizer_catalogue"]
