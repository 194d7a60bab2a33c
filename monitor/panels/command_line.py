"""The line that commands are typed on, with completion and history.

It opens over the line of hints, says what is possible while one types, and posts the finished line. What a
line means is decided by the app.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.suggester import Suggester
from textual.widgets import Input, Static

from client_callback.wire.commands import COMMANDS, Vocabulary
from monitor.messages import LineEntered
from monitor.panels.panel import plain
from monitor.vocabulary import continuations, possible_endings

_WHOLE: Final = frozenset(example for spec in COMMANDS.values() for example in spec.examples)
"""What is completed as a whole line, and is no word that may come next."""

_LABELS: Final = {"command": ":", "seek": "go to step "}


class CommandLine(Vertical):
    """Hidden until `open`."""

    def __init__(self) -> None:
        super().__init__(id="command-line")
        self.display = False
        self._purpose = "command"
        self._history: Sequence[str] = ()
        self._place = 0
        self._draft = ""
        self._complaint = ("", "")
        self._names = Vocabulary()
        self._ascii_only = False

    def compose(self) -> ComposeResult:
        """What is possible; below it label and input."""
        yield Static(id="command-help")
        with Horizontal():
            yield Static(id="command-label")
            yield _Line(self._steer)

    @property
    def line(self) -> Input:
        """Where the text is."""
        return self.query_one(_Line)

    def open(
        self,
        text: str,
        *,
        purpose: str = "command",
        complaint: str = "",
        names: Vocabulary,
        history: Sequence[str],
        ascii_only: bool,
    ) -> None:
        """Shows itself with `text` on the line.

        Args:
            text: To begin with.
            purpose: `command` or `seek`; comes back with the line.
            complaint: What is wrong with that text; shown until it is changed.
            names: What can be completed.
            history: What was typed or sent before, oldest first.
            ascii_only: Whether the terminal shows nothing else.
        """
        self._complaint = (text, complaint)
        self._purpose, self._names, self._ascii_only = purpose, names, ascii_only
        self._history = history
        self._place, self._draft = len(self._history), text
        self.query_one("#command-label", Static).update(Content(_LABELS[purpose]))
        self.line.suggester = _Completion(self._options)
        self.display = True
        self.line.value = text
        self.line.cursor_position = len(text)
        self.screen.set_focus(self.line)  # at once: keys typed ahead are meant for it
        self._say_what_is_possible()

    def close(self) -> None:
        """Hides itself."""
        self.display = False
        self.line.value = ""
        self.screen.set_focus(None)

    def say(self, text: str) -> None:
        """Shows help or an error above the input."""
        self.query_one("#command-help", Static).update(Content(plain(text, self._ascii_only)))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hands the line over and closes."""
        event.stop()
        text = event.value.strip()
        purpose = self._purpose
        self.close()
        if text:
            self.post_message(LineEntered(purpose, text))

    def on_input_changed(self, event: Input.Changed) -> None:
        """Keeps the help in step with what is typed."""
        event.stop()
        self._say_what_is_possible()

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        """Closes when the focus goes elsewhere, as by a click."""
        self.call_after_refresh(self._close_if_left)

    def _close_if_left(self) -> None:
        if self.display and self.app.screen is self.screen and self.screen.focused is not self.line:
            self.close()

    def _options(self, text: str) -> list[str]:
        return continuations(text, self._names) if self._purpose == "command" else []

    def _say_what_is_possible(self) -> None:
        text = self.line.value
        if self._complaint[1] and text == self._complaint[0]:
            self.say(self._complaint[1])
            return
        if self._purpose == "seek":
            self.say("a step such as 1200, or +50 and -50 from here")
            return
        self.say(self._help(text, self._options(text)))

    def _help(self, text: str, options: Sequence[str]) -> str:
        """While the first word is typed, what it may be; then how it goes on; at last when and for how long."""
        if " " not in text and options:
            return "  ".join(option.strip() for option in options)
        name = text.split(" ", maxsplit=1)[0]
        spec = COMMANDS.get(name.lower())
        if name in self._names.actions:
            usage = f"{name} [WORD …]   Defined by the training's script"
        elif spec is None:
            return "no such command; possible: " + ", ".join([*COMMANDS, *self._names.actions])
        else:
            usage = f"{spec.usage}   {spec.summary}"
        endings = possible_endings(text, self._names.actions) if text.endswith(" ") else []
        if endings:
            return f"then, if wanted: {'   '.join(endings)}   --dry-run"
        shown = [option.rstrip().rpartition(" ")[2] for option in options if option not in _WHOLE]
        return f"{usage}   › {'  '.join(shown)}" if shown else usage

    def _steer(self, key: str) -> None:
        """Up and down go through the history, Tab completes, Escape leaves."""
        if key == "escape":
            self.close()
        elif key == "tab":
            self._put(_common_start(self._options(self.line.value), self.line.value))
        elif self._purpose == "command":
            self._go_through_history(-1 if key == "up" else 1)

    def _go_through_history(self, by: int) -> None:
        place = max(0, min(self._place + by, len(self._history)))
        if self._place == len(self._history):
            self._draft = self.line.value
        self._place = place
        self._put(self._history[place] if place < len(self._history) else self._draft)

    def _put(self, text: str) -> None:
        self.line.value = text
        self.line.cursor_position = len(text)


class _Line(Input):
    """An input whose special keys belong to the command line round it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"steer('{key}')", show=False) for key in ("up", "down", "tab", "escape")
    ]

    def __init__(self, steer: Callable[[str], None]) -> None:
        super().__init__(compact=True, select_on_focus=False)
        self._steer = steer

    def action_steer(self, key: str) -> None:
        """Passes the key on."""
        self._steer(key)


class _Completion(Suggester):
    """Shows the best continuation behind the cursor."""

    def __init__(self, options: Callable[[str], list[str]]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._options = options

    async def get_suggestion(self, value: str) -> str | None:
        """The first one, once something has been typed."""
        options = self._options(value) if value else []
        return options[0] if options else None


def _common_start(options: Sequence[str], typed: str) -> str:
    """As far as all options agree, and what is typed where that is no further: which one is meant is not said."""
    common = ""
    for signs in zip(*options, strict=False):
        if len(set(signs)) > 1:
            break
        common += signs[0]
    return common if len(common) > len(typed) else typed
