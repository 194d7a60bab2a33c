"""Every command: how it is written, what it does, how it is parsed.

To add one: an instruction, its parser, one entry here, and a handler in `client_callback.steering`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from client_callback.wire.commands import instructions as i
from client_callback.wire.commands import parsers as p


class CommandHelp(msgspec.Struct, frozen=True):
    """One command."""

    name: str
    usage: str
    summary: str
    examples: tuple[str, ...]
    parse: p.Parser
    group: Literal["rate", "optimizer", "layers", "training", "back", "later"]
    suffixes: Literal["", "at", "all"] = "at"
    """`at`: it may wait (`at …`, `when plateau`). `all`: it may also end (`for …`), be guarded (`unless …`) and begin
    from an earlier state (`from …`)."""


COMMANDS: dict[str, CommandHelp] = {
    spec.name: spec
    for spec in (
        CommandHelp(
            "lr",
            "lr VALUE | xFACTOR | /DIVISOR [over N steps] [hold]",
            "Set or scale the learning rate; hold sets it again when a callback changes it",
            ("lr 3e-4", "lr x0.5", "lr /2", "lr 1e-4 over 500 steps", "lr x0.5 for 500 steps"),
            p.parse_rate,
            "rate",
            "all",
        ),
        CommandHelp(
            "schedule",
            "schedule KIND [ARGUMENT=VALUE …]",
            "Let a schedule decide the rate, counted from now; arguments are Keras' own",
            (
                "schedule cosine decay_steps=1000",
                "schedule step decay_steps=500 decay_rate=0.5",
                "schedule one-cycle maximal_learning_rate=0.01 total_steps=2000",
                "schedule reduce-on-plateau patience=3",
                "schedule constant",
            ),
            p.parse_schedule,
            "rate",
            "all",
        ),
        CommandHelp(
            "optimizer",
            "optimizer NAME [ARGUMENT=VALUE …]",
            "Switch to another optimizer; learning_rate=match takes a rate of equal effect",
            (
                "optimizer sgd learning_rate=0.01 momentum=0.9",
                "optimizer adamw weight_decay=0.01",
                "optimizer sgd learning_rate=match",
                "optimizer sgd learning_rate=1e-4 from start",
            ),
            p.parse_optimizer,
            "optimizer",
            "all",
        ),
        CommandHelp(
            "set",
            "set NAME=VALUE … | LAYER.NAME=VALUE …",
            "Change the optimizer's other settings, or a layer's dropout rate and L1, L2 strength",
            ("set momentum=0.9", "set clipnorm=1", "set dropout.rate=0.3", "set dense.l2=1e-4"),
            p.parse_set,
            "optimizer",
            "all",
        ),
        CommandHelp(
            "accumulate",
            "accumulate N",
            "Update once for every N batches, with the mean of their gradients",
            ("accumulate 4", "accumulate 1"),
            p.parse_accumulate,
            "optimizer",
            "all",
        ),
        CommandHelp(
            "freeze",
            "freeze LAYER…",
            "Train these layers no longer; * stands for any signs",
            ("freeze dense", "freeze conv*"),
            p.parse_freeze,
            "layers",
            "all",
        ),
        CommandHelp(
            "unfreeze",
            "unfreeze LAYER…",
            "Train these layers again",
            ("unfreeze dense", "unfreeze *"),
            p.parse_unfreeze,
            "layers",
            "all",
        ),
        CommandHelp(
            "reinit",
            "reinit LAYER… | dead-units",
            "Give layers, or the units that no longer answer to any input, fresh weights",
            ("reinit dead-units", "reinit dense"),
            p.parse_reinit,
            "layers",
        ),
        CommandHelp(
            "class-weight",
            "class-weight CLASS=WEIGHT … | balanced | none",
            "Weight the loss of each class",
            ("class-weight balanced", "class-weight 0=1 1=4.5", "class-weight none"),
            p.parse_class_weight,
            "layers",
            "all",
        ),
        CommandHelp(
            "loss-weight",
            "loss-weight OUTPUT=WEIGHT …",
            "Weight the loss of each output",
            ("loss-weight classes=0.5",),
            p.parse_loss_weight,
            "layers",
            "all",
        ),
        CommandHelp(
            "trial",
            'trial "CANDIDATE" … for N steps [from start | STEP | NAME] [--adopt] | lr LOW..HIGH for N steps',
            "Try candidates from one state on the same batches; training goes on as if nothing had happened",
            (
                'trial keep "lr x0.1" "sgd 0.05 momentum=0.9" for 100 steps',
                'trial "adam 1e-4" "sgd 1e-4" for 100 steps from start --adopt',
                "trial lr 1e-5..1 for 60 steps",
                "trial keep zero-inputs standard-inputs one-batch for 40 steps",
            ),
            p.parse_trial,
            "later",
            "",
        ),
        CommandHelp(
            "snapshot",
            "snapshot [NAME]",
            "Keep the state of the training to come back to",
            ("snapshot", "snapshot good"),
            p.parse_snapshot,
            "back",
        ),
        CommandHelp(
            "rollback",
            "rollback start | last | STEP | NAME",
            "Go back to a snapshot: weights, optimizer, settings, seeds",
            ("rollback start", "rollback last", "rollback 1200"),
            p.parse_rollback,
            "back",
        ),
        CommandHelp(
            "undo",
            "undo [settings]",
            "Take the last change back, and what was trained with it; settings keeps the weights",
            ("undo", "undo settings"),
            p.parse_undo,
            "back",
        ),
        CommandHelp("redo", "redo", "Take the last undo back", ("redo",), p.bare(i.Redo(), "redo"), "back"),
        CommandHelp(
            "pause",
            "pause",
            "Hold training before its next batch",
            ("pause", "pause at epoch 5"),
            p.bare(i.Pause(), "pause"),
            "training",
        ),
        CommandHelp(
            "resume",
            "resume",
            "Go on after a pause",
            ("resume",),
            p.bare(i.Resume(), "resume"),
            "training",
            "",
        ),
        CommandHelp(
            "stop",
            "stop [now]",
            "End this fit after the current batch; now skips its validation",
            ("stop", "stop now"),
            p.parse_stop,
            "training",
        ),
        CommandHelp(
            "extend",
            "extend N epochs",
            "Train longer, where that is possible",
            ("extend 10 epochs",),
            p.parse_extend,
            "training",
            "",
        ),
        CommandHelp(
            "evaluate",
            "evaluate",
            "Evaluate on the validation data now",
            ("evaluate", "evaluate at step 1000"),
            p.bare(i.Evaluate(), "evaluate"),
            "training",
        ),
        CommandHelp(
            "checkpoint",
            "checkpoint [PATH]",
            "Save the model: .keras whole, .weights.h5 its weights",
            ("checkpoint", "checkpoint model.keras"),
            p.parse_checkpoint,
            "training",
        ),
        CommandHelp(
            "timers",
            "timers",
            "List what waits for its moment or will be taken back",
            ("timers",),
            p.bare(i.ListTimers(), "timers"),
            "later",
            "",
        ),
        CommandHelp(
            "cancel",
            "cancel NUMBER | all",
            "Cancel a timer; what is in effect stays",
            ("cancel 1", "cancel all"),
            p.parse_cancel,
            "later",
            "",
        ),
        CommandHelp(
            "control",
            "control take | release",
            "Steer from this monitor; others then only watch",
            ("control take", "control release"),
            p.parse_control,
            "training",
            "",
        ),
        CommandHelp(
            "note",
            'note "TEXT"',
            "Write a remark into the recording",
            ('note "warm-up over"',),
            p.parse_note,
            "training",
            "",
        ),
    )
}
