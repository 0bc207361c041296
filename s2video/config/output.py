"""The section `output` of a run's configuration: the file of a video, and more files of the same frames."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ..errors import InputError
from ..media.credentials import Credentials
from ..media.formats import FORMATS, MAX_START_NUMBER, Codec, VideoSpec, codec_for, holds_timecode, suffix_of
from ..media.naming import find_collisions, named_after, render_name
from ..media.output_paths import OutputPaths
from ..system.files import user_path
from .fields import Rate, Section, Switch, Text, Whole, setting
from .text import read_list, show

_SAME_NAME = "{name}.{ext}"


class CopyConfig(Section):
    """One more file of the same frames, next to the video."""

    name: Text = Field(
        default=_SAME_NAME,
        min_length=1,
        description="its path, relative to the video's folder; {name} is the video's name without suffix, {ext} the "
        "suffix of the codec",
    )
    codec: Literal[Codec, "auto"] = Field(default="auto", description="auto: by the suffix")
    crf: Annotated[Whole, Field(ge=0, le=51)] | None = Field(default=None, description="null: that of the video")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """A codec or a name alone stands for a mapping with that one key."""
        if isinstance(value, str):
            if value not in FORMATS and "." not in value:
                raise ValueError(
                    f"expected a codec ({', '.join(FORMATS)}), or a name such as {{name}}_proxy.mp4, got {show(value)}"
                )
            return {"codec": value} if value in FORMATS else {"name": value}
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        literal = re.sub(r"\{(name|ext)\}", "", name)
        if re.search(r"[{}]", literal):
            raise ValueError(
                f"expected a codec ({', '.join(FORMATS)}), or a name with {{name}} and {{ext}}, such as "
                f"{{name}}_proxy.mp4, got {show(name)}"
            )
        try:
            render_name(name.replace("{name}", "x").replace("{ext}", "x"), {})
        except InputError as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _check_suffix(self) -> CopyConfig:
        """Refuse what names neither a codec nor a suffix."""
        if self.codec == "auto" and self.name.endswith("{ext}"):
            raise ValueError(f"{self.name}: expected a codec, or a name with a suffix; {{ext}} alone decides nothing")
        try:
            codec_for(self.path_for(Path("x.mp4")), self.codec)
        except InputError as error:
            raise ValueError(str(error).replace("output x", "x", 1)) from None
        return self

    def path_for(self, video: Path) -> Path:
        """Return its path next to a video called `video`."""
        return video.parent / named_after(self.name, video.stem, suffix_of(self.codec).removeprefix("."))


class OutputConfig(Section):
    """The file that is written."""

    path: Text = setting(
        "nothing",
        names="target",
        default="out.mp4",
        min_length=1,
        description="path of the video; its sidecar X.json is next to it. A sequence X.png or X.exr is a folder X",
    )
    codec: Literal[Codec, "auto"] = setting(
        "frames",
        default="auto",
        description="h264, h265 (.mp4), prores, dnxhr (.mov), png, exr; auto: by the path, h264, prores, png or exr",
    )
    also: Annotated[tuple[CopyConfig, ...], BeforeValidator(read_list)] = setting(
        "frames",
        newer=True,
        names="targets",
        default=(),
        max_length=8,
        description="more files of the same frames, each with a sidecar of its own: codecs (h264: X.mp4) or names "
        "({name}_proxy.mp4), or mappings {name, codec, crf}; what a format cannot hold is left out",
    )
    fps: Rate = setting(
        "frames",
        default=Fraction(16),
        description='frames per second: a number, or a ratio as text ("24000/1001"); '
        "23.976, 29.97 and 59.94 mean 24000/1001, 30000/1001 and 60000/1001",
    )
    crf: Whole = setting(
        "frames",
        default=18,
        ge=0,
        le=51,
        description="quality of H.264 and H.265: 0 best (H.264: lossless), 18 visually clean, 51 worst",
    )
    timecode: Text | None = setting(
        "frames",
        default=None,
        description='timecode of the first frame, as text ("01:00:00:00"); null: none. PNG cannot hold one',
    )
    reel: Text | None = setting(
        "frames",
        newer=True,
        default=None,
        description="name of the reel, in MOV (with a timecode), EXR and PNG; null: none",
    )
    shot: Text | None = setting(
        "nothing",
        default=None,
        description="name of the shot, for the headers of EXR and PNG; a batch sets it",
    )
    version: Text | None = setting(
        "nothing",
        default=None,
        description='version of the shot ("v002"), for the headers of EXR and PNG; a batch sets it',
    )
    audio: Text | None = setting(
        "frames",
        names="sound",
        default=None,
        description="a file with sound, which is cut or padded with silence to the length of the video; null: no sound",
    )
    start_number: Whole = setting(
        "frames",
        default=1001,
        ge=0,
        le=MAX_START_NUMBER,
        description="number of the first file of a PNG or EXR sequence",
    )
    ffmpeg: Text | None = setting(
        "nothing",
        names="program",
        default=None,
        min_length=1,
        description="path of the ffmpeg to use; null: that of imageio-ffmpeg",
    )
    credentials: Text | None = setting(
        "nothing",
        names="signer",
        default=None,
        min_length=1,
        description="sign MP4, MOV or PNG with Content Credentials (C2PA): path of a PEM file with the signer's "
        "certificate, then those that issued it. null: no signature",
    )
    credentials_key: Text | None = setting(
        "nothing",
        names="signer",
        default=None,
        min_length=1,
        description="path of a PEM file with the private key of output.credentials, without a password",
    )
    keep_latents: Switch = setting("nothing", default=False, description="keep X.latents.safetensors next to the video")

    @model_validator(mode="after")
    def _certificates_with_their_key(self) -> OutputConfig:
        if (self.credentials is None) != (self.credentials_key is None):
            named, other = ("credentials", "credentials_key")[:: 1 if self.credentials else -1]
            raise ValueError(f"expected output.{other} too, because output.{named} is set: set both, or neither")
        return self

    @property
    def signer(self) -> Credentials | None:
        """Whose signature the files get; None: none."""
        if self.credentials is None or self.credentials_key is None:
            return None
        return Credentials(
            user_path(self.credentials, "output.credentials"), user_path(self.credentials_key, "output.credentials_key")
        )

    def spec(self, path: Path) -> VideoSpec:
        """Return how a video called `path` is written. Raises InputError if settings do not fit it or each other."""
        return VideoSpec(
            self.fps,
            self.crf,
            codec_for(path, self.codec),
            self.timecode,
            None if self.audio is None else user_path(self.audio, "output.audio"),
            self.start_number,
            None if self.ffmpeg is None else user_path(self.ffmpeg, "output.ffmpeg"),
            credentials=self.signer,
            reel=self.reel,
        )

    def specs(self) -> tuple[VideoSpec, ...]:
        """Return how the video and each file in `also` are written. Raises InputError, see `spec`."""
        path = user_path(self.path, "output")
        return self.spec(path), *(copy.spec(Path(copy.path)) for copy in self.copies())

    def copies(self) -> tuple[OutputConfig, ...]:
        """Return the settings of each file in `also`, with its path and codec, and without what its format cannot hold.

        Raises:
            InputError: two of all files would have one name.
        """
        video = user_path(self.path, "output")
        copies = []
        for each in self.also:
            crf = self.crf if each.crf is None else each.crf
            copies.append(self.model_copy(update={"crf": crf}).fitted(each.path_for(video), each.codec))
        files = OutputPaths(video, tuple(Path(copy.path) for copy in copies)).videos
        for first, later, same in find_collisions([(each.video, each.sidecar) for each in files]):
            raise InputError(
                f"output.also: {files[later].output.name} and {files[first].output.name} would both be {same.name}; "
                "give one of them another name, such as {name: '{name}_2.{ext}', codec: ...}"
            )
        return tuple(copies)

    def fitted(self, path: Path, codec: Codec | Literal["auto"] = "auto") -> OutputConfig:
        """Return these settings for one other file, without a timecode, a reel or sound that its format cannot hold.

        Raises:
            InputError: codec and suffix do not match.
        """
        kind = codec_for(path, codec)
        changes: dict[str, Any] = {"path": str(path), "codec": kind, "also": ()}
        if not holds_timecode(kind, self.fps):
            changes["timecode"] = None
        if not FORMATS[kind].has_reel or (FORMATS[kind].suffix == ".mov" and self.timecode is None):
            changes["reel"] = None
        if FORMATS[kind].sound is None:
            changes["audio"] = None
        return self.model_copy(update=changes)
