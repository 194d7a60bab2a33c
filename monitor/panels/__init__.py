"""The panels of the dashboard. To add one: a file here, a line in `PANELS`, a block in `app.tcss`."""

from __future__ import annotations

from typing import Final

from monitor.panels.curves import LossPanel, MetricPanel
from monitor.panels.findings import FindingsPanel
from monitor.panels.gradients import GradientsPanel
from monitor.panels.interventions import InterventionsPanel
from monitor.panels.learning_rate import LearningRatePanel
from monitor.panels.machine import MachinePanel
from monitor.panels.panel import Panel
from monitor.panels.predictions import PredictionsPanel

PANELS: Final[tuple[type[Panel], ...]] = (
    LossPanel,
    MetricPanel,
    LearningRatePanel,
    GradientsPanel,
    MachinePanel,
    PredictionsPanel,
    InterventionsPanel,
    FindingsPanel,
)
"""In the order in which Tab goes through them; each stands in the row that its `zone` names."""
