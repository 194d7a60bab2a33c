"""What a `fit` is trained on, looked at from the side: its arguments, a few examples, what these tell.

`arguments` finds them on the call stack, `sources` knows of data that only the training itself may draw from,
`copies` takes small copies of arrays, `arrays` and `signal_probe` describe those, `inspection` joins it all. Nothing
is consumed, no code of the user's is called, and nothing but the copies is kept.
"""

from client_callback.inspection.inspection import Inspection

__all__ = ["Inspection"]
