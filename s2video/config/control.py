"""The section `control` of a run's configuration: videos, masks and images that steer models such as Wan VACE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from ..system.files import user_path
from .fields import Number, Section, Text, setting
from .text import read_list

MAX_REFERENCES = 16  # each is a latent frame of its own; models know up to four
_MAX_HINTS = 512


def _one_or_more(value: Any) -> tuple[Any, ...]:
    return read_list(value) if isinstance(value, list | tuple) else (value,)


class ControlFile(NamedTuple):
    """A file that steers the video.

    Attributes:
        setting: what the user calls it.
    """

    setting: str
    path: Path


class ControlConfig(Section):
    """What steers the video in addition to its prompt; for models with control, such as Wan VACE."""

    video: Text | None = setting(
        "nothing",
        newer=True,
        names="file",
        default=None,
        min_length=1,
        description="frames that steer the video (depth, pose, edges, grey areas to fill, ...): a video file, or a "
        "folder of images, which are sorted by name; at least as many as the video has",
    )
    mask: Text | None = setting(
        "nothing",
        newer=True,
        names="file",
        default=None,
        min_length=1,
        description="which parts of control.video the model makes anew (white), and which it keeps (black): a video "
        "file, a folder of images, or one image for all frames; null: all is made, and control.video only steers",
    )
    references: Annotated[tuple[Annotated[Text, Field(min_length=1)], ...], BeforeValidator(read_list)] = setting(
        "nothing",
        newer=True,
        names="files",
        default=(),
        max_length=MAX_REFERENCES,
        description="images of what the video shows, such as [face.png, dress.png]; each adds a latent frame",
    )
    scale: Annotated[tuple[Number, ...], BeforeValidator(_one_or_more)] = setting(
        "latents",
        newer=True,
        default=(1.0,),
        min_length=1,
        max_length=_MAX_HINTS,
        description="strength of the control: a number, or one for each layer of the model that takes a hint; 0: none",
    )

    @model_validator(mode="after")
    def _a_mask_is_of_a_video(self) -> ControlConfig:
        if self.mask is not None and self.video is None:
            raise ValueError("expected a video with the mask, got none: set control.video, or leave control.mask out")
        return self

    @property
    def files(self) -> tuple[ControlFile, ...]:
        """All files: video and mask, then the references."""
        return tuple(self._files())

    def _files(self) -> Iterator[ControlFile]:
        for name, text in (("control.video", self.video), ("control.mask", self.mask)):
            if text is not None:
                yield ControlFile(name, user_path(text, name))
        for text in self.references:
            yield ControlFile("control.references", user_path(text, "control.references"))

    def scales(self, num_hints: int) -> tuple[float, ...]:
        """Return the strength of each hint. There must be one for all, or one for each."""
        return self.scale * num_hints if len(self.scale) == 1 else self.scale
