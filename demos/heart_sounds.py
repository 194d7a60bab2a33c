"""Heart sounds, synthesised: normal and pathological phonocardiograms as 28x28 log-spectrograms.

A recording is 1.6 s through a stethoscope, cut to begin about 0.1 s before a first heart sound: lub-dub at 55 to 105
beats a minute, breath, hiss, now and then a knock on the membrane. A pathological one has something more, faint in
some and plain in others: a murmur in systole or diastole, an extra sound (S3, S4), or a wide split of the second
sound. Some normal hearts carry a faint innocent murmur, so loudness alone does not decide.

`heart` and the tests call `load_data`. NumPy only; no file and no network. It is a stand-in with the shape and the
difficulty of the real task, not a model of any patient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Sound: TypeAlias = npt.NDArray[np.float64]
Images: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]

CLASSES = ("normal", "pathological")
TRAINING, HELD_OUT = 2394, 600
NORMAL_SHARE = 0.55

SIZE = 28
RATE_HZ = 1000
WINDOW, HOP = 128, 54
SAMPLES = WINDOW + (SIZE - 1) * HOP
# Two Fourier bins to a band: 28 bands of 15.6 Hz, from 23 Hz to 453 Hz.
LOWEST_BIN, BINS_PER_BAND = 3, 2
FLOOR_DB = -60.0


def load_data(seed: int = 0) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Return `(x_train, y_train), (x_test, y_test)` as `keras.datasets.mnist.load_data` does.

    Images are uint8 `[N, 28, 28]`, 0 to 255, rows from low to high pitch, columns in time. Labels are 0 (normal) or
    1 (pathological), with the same share of each in both parts. The same seed gives the same bytes.
    """
    rng = np.random.default_rng(seed)
    return _examples(TRAINING, rng), _examples(HELD_OUT, rng)


def recording(pathological: bool, rng: np.random.Generator) -> Sound:
    """Return one recording, float64 `[SAMPLES]`; the first heart sound has an amplitude of about 1."""
    time = np.arange(SAMPLES) / RATE_HZ
    beats = _beats(time[-1], rng)
    sound = _surroundings(time, rng)
    s1_hz, s2_hz = rng.uniform(35, 60), rng.uniform(50, 85)
    s2_loudness = rng.uniform(0.5, 1.0)
    for beat in beats:
        sound += _thud(time, beat.s1, s1_hz, 0.020) + 0.6 * _thud(time, beat.s1 + 0.03, 1.4 * s1_hz, 0.014)
        sound += s2_loudness * _thud(time, beat.s2, s2_hz, 0.012)
        # The pulmonary valve closes later while breathing in: a normal, narrow split.
        sound += 0.5 * s2_loudness * _thud(time, beat.s2 + 0.015 + 0.015 * beat.breath, s2_hz, 0.012)
    if pathological:
        ailment = AILMENTS[rng.integers(len(AILMENTS))]
        sound += ailment(time, beats, rng.uniform(0.0, 1.0), rng)
    elif rng.random() < 0.15:
        sound += _innocent_murmur(time, beats, rng.uniform(0.0, 1.0), rng)
    return sound


def spectrogram(sound: Sound) -> Images:
    """Return the log-spectrogram of one recording, uint8 `[28, 28]`: 255 is its loudest spot, 0 is 60 dB below."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    heard = power[:, LOWEST_BIN : LOWEST_BIN + SIZE * BINS_PER_BAND]
    bands = heard.reshape(SIZE, SIZE, BINS_PER_BAND).sum(axis=2)
    decibels = 10 * np.log10(bands.T / bands.max() + 1e-12)
    image: Images = np.round(255 * np.clip(1 - decibels / FLOOR_DB, 0, 1)).astype(np.uint8)
    return image


def _examples(count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = (np.arange(count) >= round(NORMAL_SHARE * count)).astype(np.int64)
    rng.shuffle(labels)
    images = np.stack([spectrogram(recording(bool(label), rng)) for label in labels])
    return images, labels


@dataclass(frozen=True)
class _Beat:
    """One heart beat, in seconds from the start of the recording."""

    s1: float
    s2: float
    end: float
    breath: float  # -1 fully out, 1 fully in


def _beats(duration_s: float, rng: np.random.Generator) -> list[_Beat]:
    period = 60 / rng.uniform(55, 105)
    breath_hz, breath_phase = rng.uniform(0.2, 0.35), rng.uniform(0, 2 * np.pi)
    beats: list[_Beat] = []
    # One beat before the recording too: its murmur and its extra sounds reach into it.
    s1 = rng.uniform(0.08, 0.16) - period
    while s1 < duration_s:
        breath = float(np.sin(2 * np.pi * breath_hz * s1 + breath_phase))
        # Breathing in speeds the heart up a little.
        end = s1 + period * (1 - 0.04 * breath + rng.normal(0, 0.015))
        beats.append(_Beat(s1, s1 + 0.33 * np.sqrt(period), end, breath))
        s1 = end
    return beats


def _surroundings(time: Sound, rng: np.random.Generator) -> Sound:
    """Return hiss, breath and, in one recording of five, a knock on the membrane."""
    hiss: Sound = np.exp(rng.uniform(np.log(0.01), np.log(0.05))) * rng.standard_normal(len(time))
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.2, 0.35) * time + rng.uniform(0, 2 * np.pi))
    breath = rng.uniform(0.0, 0.06) * swell * _band_noise(80, 350, rng)
    knock = np.zeros_like(time)
    if rng.random() < 0.2:
        knock = rng.uniform(0.3, 1.0) * _thud(time, rng.uniform(0, time[-1]), rng.uniform(60, 200), 0.010)
    return hiss + breath + knock


def _thud(time: Sound, centre: float, pitch_hz: float, width_s: float) -> Sound:
    since = time - centre
    thud: Sound = np.exp(-0.5 * (since / width_s) ** 2) * np.sin(2 * np.pi * pitch_hz * since + 0.7)
    return thud


def _band_noise(low_hz: float, high_hz: float, rng: np.random.Generator) -> Sound:
    """Return noise with an rms of 1 between two pitches."""
    pitches = np.fft.rfftfreq(SAMPLES, 1 / RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(SAMPLES)) * ((pitches >= low_hz) & (pitches <= high_hz))
    noise: Sound = np.fft.irfft(spectrum, SAMPLES)
    noise /= np.std(noise)
    return noise


def _murmur(
    time: Sound, spans: list[tuple[float, float]], shape: Callable[[Sound], Sound], noise: Sound
) -> Sound:
    """Return noise under one envelope per beat; `shape` maps 0 (start of the span) to 1 (its end) to loudness."""
    envelope = np.zeros_like(time)
    for start, end in spans:
        share = (time - start) / (end - start)
        envelope += np.where((share >= 0) & (share <= 1), shape(share), 0.0)
    return envelope * noise


def _loudness(severity: float, faintest: float, loudest: float) -> float:
    return float(faintest * (loudest / faintest) ** severity)


def _aortic_stenosis(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """Systolic, crescendo then decrescendo, rough."""
    noise = _loudness(severity, 0.07, 0.4) * _band_noise(90, rng.uniform(220, 320), rng)
    return _murmur(
        time, [(b.s1 + 0.06, b.s2 - 0.02) for b in beats], lambda share: np.sin(np.pi * share), noise
    )


def _mitral_regurgitation(
    time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator
) -> Sound:
    """Systolic, level from the first sound to the second, blowing."""
    noise = _loudness(severity, 0.06, 0.3) * _band_noise(140, rng.uniform(300, 420), rng)
    return _murmur(time, [(b.s1 + 0.03, b.s2) for b in beats], np.ones_like, noise)


def _aortic_regurgitation(
    time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator
) -> Sound:
    """Diastolic, fading from the second sound on, high."""
    noise = _loudness(severity, 0.06, 0.3) * _band_noise(180, rng.uniform(350, 440), rng)
    return _murmur(time, [(b.s2 + 0.02, b.end - 0.08) for b in beats], lambda share: 1 - share, noise)


def _mitral_stenosis(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """Diastolic, a low rumble that grows towards the next first sound."""
    noise = _loudness(severity, 0.14, 0.5) * _band_noise(30, rng.uniform(90, 130), rng)
    return _murmur(time, [(b.s2 + 0.08, b.end - 0.03) for b in beats], lambda share: 0.4 + 0.6 * share, noise)


def _third_sound(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """A low extra sound early in diastole."""
    delay, pitch_hz = rng.uniform(0.13, 0.17), rng.uniform(30, 50)
    loudness = _loudness(severity, 0.3, 0.8)
    return loudness * sum((_thud(time, b.s2 + delay, pitch_hz, 0.02) for b in beats), np.zeros_like(time))


def _fourth_sound(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """A low extra sound just before the first."""
    lead, pitch_hz = rng.uniform(0.09, 0.12), rng.uniform(30, 45)
    loudness = _loudness(severity, 0.3, 0.8)
    return loudness * sum((_thud(time, b.end - lead, pitch_hz, 0.02) for b in beats), np.zeros_like(time))


def _wide_split(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """The second sound in two, however one breathes, with a soft systolic murmur."""
    gap, pitch_hz = rng.uniform(0.06, 0.09), rng.uniform(60, 90)
    loudness = _loudness(severity, 0.3, 0.8)
    second = loudness * sum((_thud(time, b.s2 + gap, pitch_hz, 0.012) for b in beats), np.zeros_like(time))
    return second + _innocent_murmur(time, beats, 0.7, rng)


def _innocent_murmur(time: Sound, beats: list[_Beat], severity: float, rng: np.random.Generator) -> Sound:
    """Systolic, short and soft; heard in healthy hearts too."""
    noise = _loudness(severity, 0.03, 0.08) * _band_noise(80, 180, rng)
    return _murmur(
        time, [(b.s1 + 0.08, b.s2 - 0.08) for b in beats], lambda share: np.sin(np.pi * share), noise
    )


AILMENTS: tuple[Callable[[Sound, list[_Beat], float, np.random.Generator], Sound], ...] = (
    _aortic_stenosis,
    _mitral_regurgitation,
    _aortic_regurgitation,
    _mitral_stenosis,
    _third_sound,
    _fourth_sound,
    _wide_split,
)
