"""One video to make, and the files that belong to it; prompts and seeds -> a list of videos. Knows no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ..config.text import read_text
from ..errors import InputError
from ..media.formats import Codec, codec_for, place_of, suffix_of
from ..media.naming import find_collisions, render_name, slug


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


class VideoRequest(NamedTuple):
    """One video to make: its prompt, the seed of its noise, and where it goes."""

    prompt: str
    seed: int
    output: Path


def read_prompt_file(path: Path) -> list[str]:
    """The prompts of a UTF-8 text file, one a line, blank lines skipped. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt-file {path}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"--prompt-file {path}: cannot be read ({error.strerror}): check the path") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"--prompt-file {path}: expected a prompt a line, came an empty file")
    return [_checked_prompt(prompt, f"--prompt-file {path}") for prompt in prompts]


def plan_videos(
    prompts: list[str], *, seed: int, num_videos: int, output: Path, codec: Codec | Literal["auto"] = "auto"
) -> tuple[VideoRequest, ...]:
    """`num_videos` videos of each prompt, with seeds from `seed` on.

    A single video goes to `output` (X.mp4); more go to X-000.mp4, X-001.mp4, …, prompt by prompt. A name with braces is
    a template (see `media.naming`) with the fields prompt, seed, index and ext instead. Raises InputError.
    """
    if not prompts:
        raise InputError("no prompt: give --prompt or --prompt-file, or set prompt in the config")
    if num_videos < 1:
        raise InputError(f"--num-videos: expected a value >= 1, came {num_videos}")
    if seed + num_videos > 2**63:
        raise InputError(f"--num-videos {num_videos}: seeds {seed} and up would pass 2^63 - 1: choose a smaller --seed")
    pairs = [(_checked_prompt(prompt, "prompt"), seed + k) for prompt in prompts for k in range(num_videos)]
    if "{" in output.name or "}" in output.name:
        outputs = _rendered(output, pairs, suffix_of(codec))
    elif len(pairs) == 1:
        outputs = [output]
    else:
        outputs = [output.with_name(f"{output.stem}-{index:03d}{output.suffix}") for index in range(len(pairs))]
    for path in outputs:
        codec_for(path, codec)
    return tuple(VideoRequest(*pair, path) for pair, path in zip(pairs, outputs, strict=True))


def _rendered(output: Path, pairs: list[tuple[str, int]], suffix: str) -> list[Path]:
    outputs = []
    for index, (prompt, seed) in enumerate(pairs):
        fields = {"prompt": slug(prompt), "seed": seed, "index": index, "ext": suffix.removeprefix(".")}
        outputs.append(output.parent / render_name(output.name, fields))
    if collisions := find_collisions(outputs):
        first, second, *_ = collisions[0]
        raise InputError(
            f"output {output}: two videos would be called {outputs[first]} (number {first} and {second}): "
            "put {seed} or {index} into the name"
        )
    return outputs


def _checked_prompt(prompt: str, source: str) -> str:
    try:
        read_text(prompt)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if not prompt.strip():
        raise InputError(f"{source}: expected some text, came an empty prompt: say what the video shows")
    return prompt
