"""A model's own sound in memory, and as a WAV file for ffmpeg. Knows no model."""

import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_PEAK = 2**23 - 1  # of 24 bits


class Sound(NamedTuple):
    """A sound track.

    Attributes:
        samples: float32 [channels, samples] in [−1, 1], on the CPU.
        rate: samples per second.
    """

    samples: Tensor
    rate: int


def write_wav(sound: Sound, path: Path) -> None:
    """Write a WAV file of 24 bits, not atomically. Values outside [−1, 1] are clamped."""
    words = (sound.samples.clamp(-1, 1) * _PEAK).round().to(torch.int32)
    words = words.T.contiguous()  # one sample of all channels after the other
    content = words.view(torch.uint8).view(*words.shape, 4)[..., :3].contiguous()  # little-endian, without the top byte
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.samples.shape[0])
        file.setsampwidth(3)
        file.setframerate(sound.rate)
        file.writeframes(content.numpy().tobytes())


@contextmanager
def wav_of(sound: Sound | None) -> Iterator[Path | None]:
    """Yield a temporary WAV file of a sound, or None for None."""
    if sound is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="s2video-sound-") as folder:
        path = Path(folder) / "sound.wav"
        write_wav(sound, path)
        yield path
