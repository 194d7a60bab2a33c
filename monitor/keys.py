"""Every key of the terminal program, in one table.

The bindings, the help screen, the line of hints and the command palette are all made of it. To add a key: one
line here and an `action_…` in `monitor.app`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Key(NamedTuple):
    """One thing to do, and the keys that do it."""

    keys: str
    """As Textual names them, separated by commas."""
    shown: str
    """As a person reads them."""
    action: str
    """Of the app; also what the palette runs."""
    text: str
    group: Literal["Training", "Curves", "Panels", "Replay", "Program"]
    hint: str = ""
    """A word for the line of hints."""
    rank: int = 0
    """There, the greatest gives way first. 0: not there."""
    only: Literal["", "live", "recorded"] = ""
    """The kind of source it is good for."""


_FREEZE: Final = "Freeze the view, or follow again; training goes on"

KEYS: Final[tuple[Key, ...]] = (
    Key(
        "left_square_bracket",
        "[",
        "send('lr x0.5')",
        "Halve the learning rate",
        "Training",
        "lr ÷2",
        2,
        "live",
    ),
    Key(
        "right_square_bracket",
        "]",
        "send('lr x2')",
        "Double the learning rate",
        "Training",
        "lr ×2",
        2,
        "live",
    ),
    Key("u", "u", "send('undo')", "Take the last change back", "Training", "undo", 3, "live"),
    Key("p", "p", "pause_training", "Pause the training, or let it go on", "Training", "pause", 3, "live"),
    Key("o", "o", "prompt('optimizer ')", "Switch the optimizer", "Training", "optimizer", 4, "live"),
    Key("colon,slash", ":", "prompt('')", "Type a command", "Training", "command", 1, "live"),
    Key("n", "n", "prompt('note ')", "Write a note into the recording", "Training", "", 0, "live"),
    Key("c", "c", "send('control take')", "Steer this run, though another does", "Training", "", 0, "live"),
    Key("S", "S", "send('stop')", "Stop the training, after asking", "Training", "", 0, "live"),
    *(
        Key(
            str(number),
            str(number),
            f"remedy({number})",
            f"Put remedy {number} on the command line",
            "Training",
            only="live",
        )
        for number in range(1, 10)
    ),
    Key("space", "space", "toggle_playing", "Play or hold the recording", "Replay", "play", 1, "recorded"),
    Key("comma", ",", "step_by(-1)", "One step back", "Replay", "", 0, "recorded"),
    Key("full_stop", ".", "step_by(1)", "One step on", "Replay", "step", 6, "recorded"),
    Key("less_than_sign", "<", "jump(-1)", "Back to the event before", "Replay", "", 0, "recorded"),
    Key("greater_than_sign", ">", "jump(1)", "On to the next event", "Replay", "event", 3, "recorded"),
    Key("left_curly_bracket", "{", "speed(-1)", "Play slower", "Replay", "", 0, "recorded"),
    Key("right_curly_bracket", "}", "speed(1)", "Play faster", "Replay", "faster", 4, "recorded"),
    Key("g", "g", "prompt_seek", "Go to a step", "Replay", "go to", 2, "recorded"),
    Key("f", "f", "freeze", _FREEZE, "Curves", "freeze", 5),
    Key("space", "space", "freeze", _FREEZE, "Curves", "", 0, "live"),
    Key("t", "t", "follow('live')", "Follow the newest steps", "Curves", "tail", 7),
    Key("a", "a", "follow('all')", "Show all steps", "Curves", "all", 7),
    Key("plus,equals_sign", "+", "zoom(0.5)", "Zoom in", "Curves", "zoom", 6),
    Key("minus", "-", "zoom(2.0)", "Zoom out", "Curves"),
    Key("left", "←", "pan(-0.2)", "Move to earlier steps", "Curves"),
    Key("right", "→", "pan(0.2)", "Move to later steps", "Curves"),
    Key("shift+left", "shift ←", "cursor(-1)", "Read values further left", "Curves"),
    Key("shift+right", "shift →", "cursor(1)", "Read values further right", "Curves"),
    Key("l", "l", "log", "Logarithmic axis for the selected chart, or linear", "Curves", "log", 8),
    Key("s", "s", "smooth(1)", "Next smoothing: none, 10 … 1,000 steps", "Curves", "smooth", 8),
    Key("m", "m", "metric", "Next metric", "Curves", "metric", 6),
    Key("tab", "tab", "panel(1)", "Next panel", "Panels", "panel", 3),
    Key("shift+tab", "shift tab", "panel(-1)", "Panel before", "Panels"),
    Key(
        "z,enter",
        "z",
        "maximise",
        "The selected panel alone (in a small terminal the chart first), or all",
        "Panels",
        "zoom panel",
        10,
    ),
    Key("h", "h", "statistic", "Next statistic of the layers", "Panels"),
    Key("d", "d", "distribution", "Next distribution: classes, confidence, inputs …", "Panels"),
    Key("pageup", "page up", "scroll(1)", "Scroll the selected panel up", "Panels"),
    Key("pagedown", "page down", "scroll(-1)", "Scroll the selected panel down", "Panels"),
    Key("escape", "esc", "leave", "Back: cursor away, all panels, follow again", "Panels"),
    Key("question_mark,f1", "?", "help", "This help", "Program", "help", 1),
    Key("ctrl+p", "ctrl p", "command_palette", "Find every action and command by name", "Program", "", 0),
    Key("ctrl+s", "ctrl s", "save_screen", "Save this screen as an SVG file", "Program"),
    Key("q,ctrl+c,ctrl+q", "q", "quit", "Leave this program; the training goes on", "Program", "quit", 1),
)
