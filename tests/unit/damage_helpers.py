"""Ways in which a finished video, as a file or as a folder of frames, can change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar_helpers import made_video


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_frame(folder: Path) -> Path:
    return sorted(folder.iterdir())[2]


def replaced(path: Path) -> None:
    """Another video of the same kind; its sidecar goes elsewhere."""
    made_video(path.parent / "other" / f"{path.name}.mp4", seed=8, prompt="a blue wall")
    path.write_bytes((path.parent / "other" / f"{path.name}.mp4").read_bytes())


FILE_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "one bit": flipped,
    "another video": replaced,
    "missing": lambda path: path.unlink(),
}
FOLDER_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "one bit": lambda folder: flipped(a_frame(folder)),
    "a frame less": lambda folder: a_frame(folder).unlink(),
    "a frame more": lambda folder: (folder / "clip.9999.png").write_bytes(b""),
    "two frames swapped": lambda folder: [
        (folder / "clip.1001.png").rename(folder / "x"),
        (folder / "clip.1002.png").rename(folder / "clip.1001.png"),
        (folder / "x").rename(folder / "clip.1002.png"),
        flipped(folder / "clip.1003.png"),
    ],
}
