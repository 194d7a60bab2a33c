"""Where a session's events come from: a live run or a recording, alike to whoever polls.

`monitor.actions` chooses one; the app and the plain output poll it and know neither sockets nor files. No
state of the run is kept here beyond what is needed to deliver every event exactly once, in order.
"""

from monitor.sources.live import LiveSource
from monitor.sources.recorded import RecordedSource
from monitor.sources.source import Source, Update

__all__ = ["LiveSource", "RecordedSource", "Source", "Update"]
