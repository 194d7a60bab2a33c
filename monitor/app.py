"""The terminal program: takes events from a source, keeps the session and the view, carries out keys.

`monitor.cli` makes a source and runs `UnstuckApp`. Polling the source never blocks, and nothing here draws:
panels do, when the dashboard shows them what is new. Leaving this program never stops a training.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final, Literal

from textual import events
from textual.app import App, SystemCommand
from textual.command import CommandPalette
from textual.screen import Screen

from client_callback.wire.commands import COMMANDS, DRY_RUN, CommandError, Stop, Vocabulary, parse
from client_callback.wire.protocol import Reply
from monitor.dashboard import CHARTS, Dashboard
from monitor.diagnosis.engine import Engine
from monitor.history import History, Line
from monitor.keys import KEYS
from monitor.looks import THEME, picture_path, self_contained
from monitor.messages import (
    ActionChosen,
    CursorMoved,
    LineEntered,
    PanelChosen,
    Panned,
    Scrolled,
    Zoomed,
)
from monitor.panels.curves import log_axis, metric_names, next_metric, shown_metric
from monitor.panels.findings import sendable
from monitor.panels.gradients import next_statistic
from monitor.panels.interventions import spoken
from monitor.panels.notices import Severity
from monitor.panels.panel import plain
from monitor.panels.predictions import next_distribution
from monitor.panels.preflight import PreflightScreen, needs_preflight
from monitor.panels.screens import ConfirmScreen, HelpScreen
from monitor.playback import Playback, RefusedError, link_of
from monitor.session import ENDED, Session
from monitor.sources import RecordedSource, Source
from monitor.under_way import UnderWay
from monitor.view import Link, View
from monitor.vocabulary import vocabulary, without_dry_run

TICK_S: Final = 0.1
"""Between two looks at the source."""

DRAW_S: Final = 0.2
"""At least so long between two drawings of what arrived, so that little is left to the training's machine to
send and to compute. Keys are answered at once."""

_SEVERITIES: Final[dict[str, Severity]] = {
    "applied": "information",
    "ineffective": "warning",
    "planned": "information",
    "refused": "warning",
    "failed": "error",
}
_STOP_QUESTION = (
    "Stop this training? fit() ends after its current batch, as if its epochs were over. "
    "To leave only this program, press n and then q."
)


class UnstuckApp(App[None]):
    """One run on the screen, live or recorded.

    `source` is closed when the program ends. `note` is shown in the status line, such as a recording's path.
    """

    TITLE = "unstuck"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar = []

    def __init__(self, source: Source, *, ascii_only: bool = False, note: str = "") -> None:
        super().__init__()
        self.source = source
        self.session = Session()
        self.view = View(ascii_only=ascii_only, link=Link(live=source.live, note=note))
        self._engine = Engine()
        self._under_way = UnderWay()
        self._history = History(self._warn)
        self._started_at = time.time()
        self._drawn_at = -DRAW_S
        self._dashboard = Dashboard()

    def on_mount(self) -> None:
        """Begins to look at the source."""
        self.register_theme(THEME)
        self.theme = THEME.name
        self.set_class(self.view.ascii_only, "-ascii-only")
        self._dashboard.set_class(self.view.ascii_only, "-ascii")  # before its borders are drawn first
        self.push_screen(self._dashboard)
        self.call_after_refresh(self.tick)
        self.set_interval(TICK_S, self.tick)

    def on_unmount(self) -> None:
        """Lets go of the source."""
        self._engine.close()
        self.source.close()

    def tick(self) -> None:
        """Takes in what has arrived, and shows it; a timer may still ring once the screens are gone."""
        if not self.is_running:
            return
        update = self.source.poll()
        if update.reset:
            self.session = Session()
            self._engine.forget()
        for event in update.events:
            self.session.apply(event)
            if isinstance(event, Reply):
                self._take_reply(event)
        self._show_card()
        now = time.monotonic()
        if now - self._drawn_at < DRAW_S and not update.reset:
            return
        self._drawn_at = now
        findings = self._engine.look(self.session, now).findings
        ended, control = self.session.state in ENDED, self.session.control
        link = link_of(self.source, self.view.link.note, ended=ended, control=control)
        self._look(findings=findings, link=link, **self._under_way.shown())

    # ── Training ──────────────────────────────────────────────────────────────────────────────────

    def action_send(self, text: str) -> None:
        """Sends a command: after asking where it ends the training, after its preflight where it is risky."""
        if not self._steers():
            return
        try:
            order = parse(text, self.session.actions)
        except CommandError as error:
            self._warn(str(error))
            return
        if needs_preflight(order):
            self._send(without_dry_run(text), check=True)
        elif isinstance(order.instruction, Stop):
            self.push_screen(ConfirmScreen(_STOP_QUESTION), lambda yes: self._send(text) if yes else None)
        else:
            self._send(text)

    def action_pause_training(self) -> None:
        """Holds the training, or lets it go on."""
        self.action_send("resume" if self.session.state == "paused" else "pause")

    def action_remedy(self, number: int) -> None:
        """Puts a remedy on the command line, to be sent with Enter or changed first."""
        if not self._steers():
            return
        remedies = sendable(self.view.findings)
        if number <= len(remedies):
            self.action_prompt(remedies[number - 1].command or "")

    def action_prompt(self, text: str, complaint: str = "") -> None:
        """Opens the command line, saying what is wrong with the text if anything is."""
        if not self._steers():
            return
        self._dashboard.command_line.open(
            text,
            complaint=complaint,
            names=vocabulary(self.session),
            history=self._history.with_sent(
                Line(reply.time, without_dry_run(reply.text)) for reply in self.session.answered()
            ),
            ascii_only=self.view.ascii_only,
        )

    def on_line_entered(self, message: LineEntered) -> None:
        """Sends the command that was typed, or goes to the step; what makes no sense can be mended."""
        if message.purpose == "seek":
            self._play(lambda playback: playback.seek_to(message.text))
            return
        self._history.add(Line(time.time(), message.text))
        try:
            parse(message.text, self.session.actions)
        except CommandError as error:
            self.action_prompt(message.text, complaint=str(error))
        else:
            self.action_send(message.text)

    def on_key(self, event: events.Key) -> None:
        """A letter that was under way when the command line opened is meant for that, and has not been to it."""
        line = self._dashboard.command_line.line
        if event.is_printable and event.character and self.focused is line:
            event.prevent_default()
            line.insert_text_at_cursor(event.character)

    def _steers(self) -> bool:
        """Whether there is a training to steer; says so when there is none."""
        if not self.source.live:
            self._warn("A recording cannot be steered; it shows what was done.")
        return self.source.live

    def _send(self, text: str, *, check: bool = False) -> None:
        """Sends a command; with `check`, only asks what it would do, and a card shows the answer."""
        try:
            command_id = self.source.send(f"{text} {DRY_RUN}" if check else text)
        except CommandError as error:
            self._warn(str(error))
            return
        self._under_way.add(command_id, text, check=check)
        self._look(**self._under_way.shown())

    def _take_reply(self, reply: Reply) -> None:
        own, says = self._under_way.take(reply), reply in self.session.answered()
        if says and (own or (self.source.live and reply.time >= self._started_at)):
            self._say(spoken(reply, own=own), _SEVERITIES[reply.status])

    def _show_card(self) -> None:
        """Opens the next plan, unless something is being typed or read: its keys are not meant for the card."""
        if self.screen is not self._dashboard or self._dashboard.command_line.display:
            return
        card = self._under_way.next_card()
        if card:
            screen = PreflightScreen(card.command, card.plan, ascii_only=self.view.ascii_only)
            self.push_screen(screen, lambda yes: self._send(card.command) if yes else None)

    # ── Replay ────────────────────────────────────────────────────────────────────────────────────

    def action_toggle_playing(self) -> None:
        """Plays, or holds."""
        self._play(Playback.toggle)

    def action_step_by(self, by: int) -> None:
        """Goes a step on or back."""
        self._play(lambda playback: playback.step_by(by))

    def action_jump(self, direction: int) -> None:
        """Goes to the next or the previous event."""
        self._play(lambda playback: playback.jump(direction))

    def action_speed(self, by: int) -> None:
        """Plays faster or slower."""
        self._play(lambda playback: playback.change_speed(by))

    def action_prompt_seek(self) -> None:
        """Asks for a step to go to."""
        self._dashboard.command_line.open(
            "", purpose="seek", names=Vocabulary(), history=(), ascii_only=self.view.ascii_only
        )

    def _play(self, control: Callable[[Playback], None]) -> None:
        if not isinstance(self.source, RecordedSource):
            return
        try:
            control(Playback(self.source))
        except RefusedError as refused:
            self._warn(str(refused))
        self._drawn_at = -DRAW_S
        self.tick()

    # ── View ──────────────────────────────────────────────────────────────────────────────────────

    def action_freeze(self) -> None:
        """Keeps the view where it is, or follows again."""
        frozen = self.view.mode == "frozen"
        self._set(self.view.following() if frozen else self.view.frozen(self._steps))

    def action_follow(self, mode: Literal["live", "all"]) -> None:
        """Follows the newest steps, or all."""
        self._set(self.view.showing(mode))

    def action_zoom(self, factor: float) -> None:
        """Zooms round the cursor, or else the newest step in view."""
        self._set(self.view.zoomed(factor, self.view.cursor, self._steps))

    def action_pan(self, share: float) -> None:
        """Moves by a share of the width."""
        start, stop = self.view.window(self._steps)
        self._set(self.view.panned(round((stop - start) * share) or (1 if share > 0 else -1), self._steps))

    def action_cursor(self, direction: int) -> None:
        """Moves the cursor by about a cell, into view if need be."""
        self._set(self.view.with_cursor(direction, self._steps))

    def action_log(self) -> None:
        """Another axis for the selected chart."""
        chart = self._dashboard.chart(self.view)
        name = {"loss": "loss", "learning-rate": "learning_rate"}.get(chart) or shown_metric(
            self.session, self.view
        )
        if name and log_axis(self.session, self.view, name):
            self._look(log=self.view.log - {name}, linear=self.view.linear | {name})
        elif name:
            self._look(log=self.view.log | {name}, linear=self.view.linear - {name})

    def action_smooth(self, by: int) -> None:
        """The next smoothing."""
        self._set(self.view.next_smoothing(by))

    def action_metric(self) -> None:
        """The next metric; where there is one chart only, the loss is among them."""
        self._set(next_metric(self.session, self.view, with_loss=self._dashboard.compact))

    def action_statistic(self) -> None:
        """The next statistic of the layers."""
        self._set(next_statistic(self.session, self.view))
        self._select("gradients")

    def action_distribution(self) -> None:
        """The next distribution."""
        self._set(next_distribution(self.session, self.view))
        self._select("predictions")

    def action_panel(self, by: int) -> None:
        """Selects the next panel."""
        names = self._dashboard.selectable()
        here = names.index(self._dashboard.selected(self.view))
        self._select(names[(here + by) % len(names)])

    def action_maximise(self) -> None:
        """Gives the screen to the selected panel, or back to all."""
        self._dashboard.maximise(self._dashboard.next_maximised(self.view))
        self._look()

    def action_scroll(self, pages: int) -> None:
        """Scrolls the selected panel by most of a page."""
        panel = self._dashboard.panels[self._dashboard.selected(self.view)]
        self._scroll(pages * max(1, panel.content_size.height - 1))

    def action_leave(self) -> None:
        """Undoes the last of: cursor, maximised panel, scrolling, freezing."""
        if self.view.cursor is not None:
            self._look(cursor=None)
        elif self._dashboard.maximised:
            self._dashboard.maximise(None)
            self._look()
        elif self.view.scrolled:
            self._look(scrolled=0)
        else:
            self._set(self.view.following())

    def on_zoomed(self, message: Zoomed) -> None:
        """Zooms where the wheel was turned."""
        self._set(self.view.zoomed(message.factor, message.anchor, self._steps))

    def on_panned(self, message: Panned) -> None:
        """Moves with the mouse."""
        self._set(self.view.panned(message.by, self._steps))

    def on_cursor_moved(self, message: CursorMoved) -> None:
        """Reads out another step."""
        if message.step != self.view.cursor:
            self._look(cursor=message.step)

    def on_panel_chosen(self, message: PanelChosen) -> None:
        """Selects what was clicked."""
        self._select(message.name)

    def on_scrolled(self, message: Scrolled) -> None:
        """Scrolls what the wheel was turned over."""
        self._select(message.name)
        self._scroll(message.by)

    async def on_action_chosen(self, message: ActionChosen) -> None:
        """Does what the clicked hint says."""
        await self.run_action(message.action)

    # ── Program ───────────────────────────────────────────────────────────────────────────────────

    def action_help(self) -> None:
        """Shows every key."""
        self.push_screen(HelpScreen(live=self.source.live, ascii_only=self.view.ascii_only))

    def action_command_palette(self) -> None:
        """Finds actions and commands by name."""
        self.push_screen(CommandPalette(placeholder="Search for an action or a command"))

    def action_save_screen(self) -> None:
        """Writes the screen as an SVG file into the current folder."""
        path = picture_path(self.session)
        try:
            path.write_text(self.export_screenshot(), encoding="utf-8")
        except OSError as error:
            self._say(f"{path} could not be written: {error.strerror or error}", "error")
        else:
            self._say(f"Saved {path}", "information")

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """The screen as an SVG that loads nothing from elsewhere."""
        name = self.session.run.name if self.session.run else ""
        title = title or (f"unstuck: {name}" if name else "unstuck")
        return self_contained(super().export_screenshot(title=title, simplify=simplify))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """What the palette finds: every action, every command, every metric."""
        ascii_only = self.view.ascii_only
        for title, text, run in self._palette():
            # The palette reads markup, in which usages such as [ARGUMENT=VALUE] have a meaning.
            literal = plain(text, ascii_only).replace("[", r"\[")
            yield SystemCommand(plain(title, ascii_only), literal, run)

    def _palette(self) -> Iterable[tuple[str, str, Callable[[], object]]]:
        once = {key.action: key for key in reversed(KEYS)}
        for key in KEYS:
            offered = self._possible(key.only) and not key.action.startswith(("remedy", "command_palette"))
            if offered and once[key.action] is key:
                yield key.text, f"key: {key.shown}", partial(self.run_action, key.action)
        for spec in COMMANDS.values() if self.source.live else ():
            yield (
                f"Command {spec.name}",
                f"{spec.summary}: {spec.usage}",
                partial(self.action_prompt, f"{spec.name} "),
            )
        for name in self.session.actions if self.source.live else ():
            command = shlex.quote(name)
            yield f"Action {name}", "defined by the training's script", partial(self.action_send, command)
        for name in metric_names(self.session):
            yield f"Show {name}", "beside the loss", partial(self._look, metric=name, chart="metric")
        yield "Theme", "Choose other colours", self.action_change_theme

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that only recordings have do nothing elsewhere; those that steer say why they cannot."""
        kinds = {key.only for key in KEYS if key.action.partition("(")[0] == action}
        return kinds != {"recorded"} or not self.source.live

    def _possible(self, only: str) -> bool:
        return only == "" or (only == "live") == self.source.live

    # ── Helpers ───────────────────────────────────────────────────────────────────────────────────

    @property
    def _steps(self) -> int:
        return len(self.session.times)

    def _look(self, **changes: Any) -> None:
        self._set(replace(self.view, **changes))

    def _set(self, view: View) -> None:
        self.view = view
        if self._dashboard.is_mounted:
            self._dashboard.show(self.session, view)

    def _select(self, name: str) -> None:
        if name in CHARTS and self._dashboard.compact:
            return
        if self._dashboard.maximised:
            self._dashboard.maximise(name)
        self._look(selected=name, scrolled=self.view.scrolled if name == self.view.selected else 0)

    def _scroll(self, up: int) -> None:
        selected = self._dashboard.selected(self.view)
        spare = self._dashboard.panels[selected].spare
        self._look(scrolled=max(0, min(self.view.scrolled - up, spare)), selected=selected)

    def _say(self, text: str, severity: Severity) -> None:
        self._dashboard.notices.say(plain(text, self.view.ascii_only), severity)

    def _warn(self, text: str) -> None:
        self._dashboard.notices.say(plain(text, self.view.ascii_only), "warning", again=False)
