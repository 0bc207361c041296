"""One video to make, and the files that belong to it. Knows no model."""

from dataclasses import dataclass
from pathlib import Path

from .media.formats import place_of


@dataclass(frozen=True)
class Job:
    """One video to make. `output` ends in the suffix of its format; the other files lie beside it under the same name.

    `image`, `last_image`: files of what it starts from, and ends with.
    `resume`: a video that is already there is left as it is, and one that was interrupted goes on from its checkpoint.
    """

    prompt: str
    negative_prompt: str
    seed: int
    output: Path
    keep_latents: bool = False
    resume: bool = False
    image: Path | None = None
    last_image: Path | None = None

    @property
    def place(self) -> Path:
        """What the video appears as: the file `output`, or the folder of a sequence."""
        return place_of(self.output)

    @property
    def sidecar_path(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def latents_path(self) -> Path:
        return self.output.with_suffix(".latents.safetensors")

    @property
    def checkpoint_path(self) -> Path:
        return self.output.with_suffix(".checkpoint.safetensors")
