"""One module per family of commands; each lists what it handles, and all of them are joined here.

What goes back (`history`), waits (`timers`) or is tried out (`trials`) has a state of its own and is not among them.
"""

from client_callback.steering.handlers import layers, loss, optimizer, rates, training
from client_callback.steering.handling import Handlings

HANDLINGS: Handlings = {
    **rates.HANDLINGS,
    **optimizer.HANDLINGS,
    **layers.HANDLINGS,
    **loss.HANDLINGS,
    **training.HANDLINGS,
}
