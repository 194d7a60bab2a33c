"""Who trains what, where: everything about a run that is known before its first step.

`run` joins it, `layers` and `outputs` read the model. They only look: nothing is built, called or changed, and what
cannot be read of a user's own class is left empty.
"""

from client_callback.description.run import describe_model, describe_run

__all__ = ["describe_model", "describe_run"]
