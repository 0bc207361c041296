"""Jobs: a job is a config that says everything about one video. From prompts and seeds to jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..config.run import RunConfig
from ..config.text import read_text
from ..errors import InputError
from ..media.formats import Codec, codec_for, suffix_of
from ..media.naming import find_collisions, render_name, slug
from ..media.output_paths import OutputPaths
from ..system.files import user_path
from ..system.text_file import read_text_file

MAX_VIDEOS = 100_000  # of one command


def read_prompt_file(path: Path) -> list[str]:
    """Return the prompts of a UTF-8 text file, one in each line; blank lines are skipped. Raises InputError."""
    text = read_text_file(path, "--prompt-file")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"--prompt-file {path}: expected a prompt in each line, got an empty file")
    return [_checked_prompt(prompt, f"--prompt-file {path}") for prompt in prompts]


def plan_jobs(config: RunConfig, prompts: list[str], num_videos: int = 1) -> tuple[RunConfig, ...]:
    """Return `num_videos` jobs for each prompt, with seeds from `sampling.seed` on.

    A single video goes to `output.path` (X.mp4); several go to X-000.mp4, X-001.mp4, …, prompt by prompt. A name with
    braces is a template instead (see `media.naming`), with the fields prompt, seed, index and ext.

    Raises:
        InputError: no prompt, a number or a name that cannot be used.
    """
    seed, output, codec = config.sampling.seed, user_path(config.output.path, "output"), config.output.codec
    if not prompts:
        raise InputError("no prompt: give --prompt or --prompt-file, or set prompt in the config")
    if not 1 <= num_videos * len(prompts) <= MAX_VIDEOS:
        raise InputError(
            f"--num-videos: expected a value >= 1, and at most {MAX_VIDEOS} videos of all prompts, got {num_videos}"
        )
    if seed + num_videos > 2**63:
        raise InputError(f"--num-videos {num_videos}: seeds {seed} and up would pass 2^63 - 1: choose a smaller --seed")
    pairs = [(_checked_prompt(prompt, "prompt"), seed + k) for prompt in prompts for k in range(num_videos)]
    outputs = _outputs(output, pairs, codec)
    for path in outputs:
        codec_for(path, codec)
    return tuple(
        config.patched({"prompt": prompt, "sampling.seed": seed, "output.path": str(path)}, "command line")
        for (prompt, seed), path in zip(pairs, outputs, strict=True)
    )


def _outputs(output: Path, pairs: list[tuple[str, int]], codec: Codec | Literal["auto"]) -> list[Path]:
    if "{" in output.name or "}" in output.name:
        return _rendered(output, pairs, suffix_of(codec))
    if len(pairs) == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index:03d}{output.suffix}") for index in range(len(pairs))]


def _rendered(output: Path, pairs: list[tuple[str, int]], suffix: str) -> list[Path]:
    outputs = []
    for index, (prompt, seed) in enumerate(pairs):
        fields = {"prompt": slug(prompt), "seed": seed, "index": index, "ext": suffix.removeprefix(".")}
        outputs.append(output.parent / render_name(output.name, fields))
    for first, later, path in find_collisions(OutputPaths(output).all for output in outputs):
        raise InputError(
            f"output {output}: two videos would have the name {path} (number {first} and {later}): put {{seed}} or "
            "{index} into the name"
        )
    return outputs


def _checked_prompt(prompt: str, source: str) -> str:
    try:
        read_text(prompt)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if not prompt.strip():
        raise InputError(f"{source}: expected some text, got an empty prompt: say what the video shows")
    return prompt
