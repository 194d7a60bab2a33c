"""What is installed, and what the repository's files promise about it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_demos_without_a_package_of_that_name(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert folders == {"client_callback", "monitor"}
    assert {"monitor/_demos/heart.py", "monitor/_demos/digits.py", "monitor/app.tcss"} <= set(names)
    assert {"client_callback/py.typed", "monitor/py.typed"} <= set(names)


@pytest.mark.parametrize("name", ["dev", "torch", "bench"])
def test_pinned_requirements_are_hashed_and_name_no_host(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    pins = re.findall(r"^[\w.\-\[\]]+==", text, flags=re.MULTILINE)
    assert len(pins) > 30
    assert text.count("--hash=sha256:") > len(pins)
    assert "://" not in text


def test_what_both_sides_need_is_all_that_is_always_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.split(r"[><=]", requirement)[0] for requirement in project["dependencies"]}
    assert base == {"numpy", "msgspec", "pyzmq", "platformdirs"}
    assert {"client", "monitor", "tensorflow", "all"} <= set(project["optional-dependencies"])
