"""Where files go: sockets and run files, recordings, keys, settings; all of it private to the user.

Both sides ask here, so that the terminal looks where the training wrote. The environment variable
`UNSTUCK_HOME` moves everything under one folder. What the files hold is not known here.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import platformdirs

RECORDING_SUFFIX = ".unstuck"
MAX_SOCKET_PATH = 100
"""Bytes of a Unix socket's path. Linux takes 107, macOS 103."""

_APPLICATION = "unstuck"


def runtime_folder() -> Path:
    """Run files and Unix sockets; made 0700.

    Not the system's runtime directory: a training started by a batch system and a terminal opened over SSH
    are told different ones, and it vanishes when its user logs out.
    """
    return private_folder((_home() or Path(platformdirs.user_data_dir(_APPLICATION))) / "runs")


def recordings_folder() -> Path:
    """Where recordings go unless a run names another folder; made 0700."""
    return private_folder((_home() or Path(platformdirs.user_data_dir(_APPLICATION))) / "recordings")


def keys_folder() -> Path:
    """CURVE keys; made 0700."""
    return private_folder((_home() or Path(platformdirs.user_config_dir(_APPLICATION))) / "keys")


def settings_folder() -> Path:
    """What the terminal remembers; made 0700."""
    return private_folder((_home() or Path(platformdirs.user_config_dir(_APPLICATION))) / "settings")


def logs_folder() -> Path:
    """What started programs print; made 0700."""
    return private_folder((_home() or Path(platformdirs.user_data_dir(_APPLICATION))) / "logs")


def cache_folder() -> Path:
    """What can be made again; made 0700."""
    return private_folder((_home() or Path(platformdirs.user_cache_dir(_APPLICATION))) / "cache")


def private_folder(folder: Path) -> Path:
    """Makes `folder` (0700) or checks that it is this user's own.

    Raises:
        PermissionError: it belongs to somebody else.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to user {status.st_uid}, not to you; set UNSTUCK_HOME")
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def recording_path(folder: Path, name: str, run_id: str, started_at: float) -> Path:
    """`<name>-<YYYYmmdd-HHMMSS>-<run_id>.unstuck` in `folder`; the name made fit for a file."""
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:60] or "run"
    when = time.strftime("%Y%m%d-%H%M%S", time.localtime(started_at))
    return folder / f"{plain}-{when}-{run_id}{RECORDING_SUFFIX}"


def fits_sockets(folder: Path, run_id: str) -> bool:
    """Whether the path of a run's sockets in `folder` is short enough for the system."""
    return len(os.fsencode(folder / f"{run_id}.control")) <= MAX_SOCKET_PATH


def short_folder() -> Path:
    """A new folder with a short path, 0700, for sockets that the runtime folder cannot hold."""
    return Path(tempfile.mkdtemp(prefix=f"{_APPLICATION}-", dir="/tmp"))


def _home() -> Path | None:
    home = os.environ.get("UNSTUCK_HOME")
    return Path(home).expanduser().absolute() if home else None
