"""What ailing and healthy trainings learn from: it comes with Python or scikit-learn, or is made here.

Each function returns a `Split`, another one for each seed, as it would come from a file: not scaled, labels as
integers. What a script does to it before `fit` is in `recipe` (scaling, one-hot) and `spoiling` (mistakes).
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn import datasets
from sklearn.model_selection import train_test_split

from .. import heart_sounds  # noqa: TID252  (installed, it lies in `monitor._demos`)

Array: TypeAlias = npt.NDArray[Any]

HEART_EXAMPLES = 1500
HOUSING_EXAMPLES = 2400
SNIPPETS_PER_CLASS = 700
VOCABULARY = 1000
"""Words are hashed into so many; 0 is padding."""
PROSE_SNIPPETS = 2400
SNIPPET_WORDS = 32
PACKAGES = ("asyncio", "email", "unittest", "multiprocessing")
"""Of the standard library; the classes of `text`."""


@dataclass(frozen=True)
class Split:
    """One data set in three parts. Targets are int64 class numbers `[N]`, or float32 `[N]`."""

    x: Array
    y: Array
    x_validation: Array
    y_validation: Array
    x_held_out: Array
    y_held_out: Array
    classes: int
    """0: the targets are numbers, not classes."""


def digits(seed: int) -> Split:
    """Handwritten digits, float32 `[N, 8, 8, 1]`, 0 to 16, ten classes."""
    images, labels = _digits()
    return _split(images, labels, 10, seed)


def wine(seed: int) -> Split:
    """Chemistry of wines, 13 features from 0.1 to 1,680, three classes, 178 examples."""
    features, labels = _table("wine")
    return _split(features, labels, 3, seed)


def diabetes(seed: int) -> Split:
    """Progress of diabetes after a year, 25 to 346, from 10 features; 442 examples, and much that none explains."""
    features, targets = _table("diabetes")
    return _split(features, targets.astype(np.float32), 0, seed)


def text(seed: int) -> Split:
    """Snippets of the standard library's sources, int32 `[N, 32]` word numbers; the class is the package."""
    words, labels = _snippets()
    return _split(words, labels, len(PACKAGES), seed)


def prose(seed: int) -> Split:
    """The same snippets: does one hold a docstring or comment (1) or plain code (0)? A third do."""
    words, labels = _prose()
    return _split(words, labels, 2, seed)


def breast_cancer(seed: int) -> Split:
    """Cell nuclei, 30 features from 0.001 to 4,254, benign (1) or malignant (0), 569 examples."""
    features, labels = _table("breast_cancer")
    return _split(features, labels, 2, seed)


def housing(seed: int) -> Split:
    """House prices in units of 100,000 from 8 features, made to resemble California's census of 1990."""
    features, prices = _housing()
    return _split(features, prices, 0, seed)


def heart(seed: int) -> Split:
    """Heart sounds as spectrograms, float32 `[N, 28, 28, 1]`, 0 to 255, normal (0) or pathological (1)."""
    images, labels = _heart()
    return _split(images, labels, 2, seed)


def _split(x: Array, y: Array, classes: int, seed: int) -> Split:
    """Half to train on, a fifth to validate with, the rest held out."""
    strata = y if classes else None
    x_train, x_rest, y_train, y_rest = train_test_split(
        x, y, test_size=0.5, random_state=seed, stratify=strata
    )
    x_validation, x_held_out, y_validation, y_held_out = train_test_split(
        x_rest, y_rest, test_size=0.6, random_state=seed, stratify=y_rest if classes else None
    )
    return Split(x_train, y_train, x_validation, y_validation, x_held_out, y_held_out, classes)


@lru_cache
def _digits() -> tuple[Array, Array]:
    images, labels = datasets.load_digits(return_X_y=True)
    return images.astype(np.float32).reshape(-1, 8, 8, 1), labels.astype(np.int64)


@lru_cache
def _table(name: str) -> tuple[Array, Array]:
    features, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    return features.astype(np.float32), targets


@lru_cache
def _heart() -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    labels = (np.arange(HEART_EXAMPLES) >= round(heart_sounds.NORMAL_SHARE * HEART_EXAMPLES)).astype(np.int64)
    images = [heart_sounds.spectrogram(heart_sounds.recording(bool(label), rng)) for label in labels]
    return np.stack(images).astype(np.float32)[..., None], labels


@lru_cache
def _housing() -> tuple[Array, Array]:
    """Skewed counts, two coasts, and prices that follow from products: income counts more near the sea."""
    rng = np.random.default_rng(2)
    n = HOUSING_EXAMPLES
    near_south = rng.random(n) < 0.55
    latitude = np.where(near_south, rng.normal(34.0, 0.6, n), rng.normal(37.8, 0.9, n))
    inland = rng.gamma(1.5, 0.6, n)
    longitude = np.where(near_south, -118.6, -122.4) + inland
    income = rng.lognormal(1.25, 0.45, n)
    age = rng.uniform(1, 52, n)
    rooms = rng.lognormal(1.6, 0.25, n) + 0.15 * income
    bedrooms = rooms * rng.normal(0.2, 0.02, n)
    population = rng.lognormal(7.0, 0.7, n)
    occupancy = rng.lognormal(1.0, 0.25, n)
    sea = np.exp(-((inland / 0.7) ** 2))
    price = 0.25 + 0.22 * income + 0.38 * income * sea - 0.35 * (occupancy - 2.7) * income / 3.5
    price += 1.2 * sea * np.abs(age - 26) / 26 + 0.9 * np.sin(1.3 * latitude) * (1 - sea)
    price *= np.exp(rng.normal(0, 0.08, n))
    features = [income, age, rooms, bedrooms, population, occupancy, latitude, longitude]
    return np.stack(features, axis=1).astype(np.float32), np.clip(price, 0.15, 6.0).astype(np.float32)


@lru_cache
def _snippets() -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    words, labels = [], []
    for label, package in enumerate(PACKAGES):
        found = np.stack([_numbers(lines) for lines in _pieces(package, 5)])
        chosen = rng.choice(len(found), min(SNIPPETS_PER_CLASS, len(found)), replace=False)
        words.append(found[chosen])
        labels += [label] * len(chosen)
    return np.concatenate(words), np.array(labels, np.int64)


@lru_cache
def _prose() -> tuple[Array, Array]:
    rng = np.random.default_rng(4)
    pieces = [lines for package in PACKAGES for lines in _pieces(package, 3)]
    chosen = rng.choice(len(pieces), min(PROSE_SNIPPETS, len(pieces)), replace=False)
    held = [pieces[number] for number in chosen]
    labels = [int('"""' in lines or "# " in lines) for lines in held]
    # The signs that give it away are no words: what remains is the language.
    return np.stack([_numbers(lines.replace('"""', " ").replace("#", " ")) for lines in held]), np.array(
        labels, np.int64
    )


def _pieces(package: str, lines: int) -> list[str]:
    """So many lines each, of those that are not empty."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / package
    found = []
    for file in sorted(folder.rglob("*.py")):
        if "test" in file.parts:
            continue
        full = [
            line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        found += ["\n".join(full[at : at + lines]) for at in range(0, len(full) - lines, lines)]
    return found


def _numbers(source: str) -> npt.NDArray[np.int32]:
    words = re.findall(r"[A-Za-z_]+|\d+|[^\sA-Za-z_\d]", source)[:SNIPPET_WORDS]
    numbers = np.zeros(SNIPPET_WORDS, np.int32)
    numbers[: len(words)] = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return numbers


DATASETS = {
    "digits": digits,
    "wine": wine,
    "diabetes": diabetes,
    "text": text,
    "prose": prose,
    "breast-cancer": breast_cancer,
    "housing": housing,
    "heart": heart,
}
"""Name → function of a seed."""

REPORTED = frozenset({"breast-cancer", "housing", "heart"})
"""Data sets that no rule is tuned on: they only judge. The others may be looked at."""
