"""What is asked for, held against what can be done, before any model is loaded or any process started.

From a config and the command line's prompts to a list of videos to make; from a checkpoint's JSON files to the bounds
that it sets. It reads no weights, imports neither torch nor diffusers (save where a setting can only be checked there),
and writes nothing.
"""

from __future__ import annotations

import math
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from .config import RunConfig
from .config_text import read_text
from .errors import InputError
from .files import check_replaceable
from .media.exr import check_openimageio
from .media.ffmpeg import check_encoder
from .media.formats import Codec, VideoSpec, codec_for, is_frame_name, place_of, suffix_of
from .media.naming import find_collisions, render_name, slug
from .models.family import WAN_VAE, CheckpointInfo, JsonFile

_PIPELINE_MULTIPLE = 16  # pixels; diffusers' pipelines take no other sizes, and results are held against them


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
    a template (see `naming.py`) with the fields prompt, seed, index and ext instead. Raises InputError.
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


def check_output(path: Path, *, is_video: bool = True) -> None:
    """Raise InputError unless a video, or another file, called `path` can be written, missing folders being made then.

    Writes nothing.
    """
    try:
        place = place_of(path) if is_video else path
        if place != path:
            check_replaceable(place, partial(is_frame_name, path))
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(path.stat().st_mode):
                raise InputError(f"output {path}: is a folder: give the name of a file")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        # A file without a name, tried for real: permission bits say nothing to root, nor of read-only file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"output {path}: cannot be written there ({error.strerror}): choose another path") from None


def check_spec(spec: VideoSpec, width: int, height: int) -> None:
    """Raise InputError unless pictures of this size suit the format, and what writes it and its sound are there."""
    spec.check_size(width, height)
    if spec.audio is not None:
        import av

        try:
            with av.open(f"file:{spec.audio}", metadata_errors="replace") as container:
                if not container.streams.audio:
                    raise InputError(f"output.audio: {spec.audio} has no sound track")
        except av.FFmpegError as error:
            raise InputError(f"output.audio: cannot read {spec.audio} ({error.strerror}): check the path") from None
    if spec.format.encoder is None:
        check_openimageio()
    else:
        check_encoder(spec.format.encoder, spec.ffmpeg)


def read_checkpoint(folder: Path) -> CheckpointInfo:
    """Read the bounds from a folder that passed `check_checkpoint`. Raises InputError for an unknown kind."""
    from .models.loading import read_family, read_json

    def settings(component: str) -> JsonFile:
        path = folder / component / "config.json"
        return JsonFile(path, read_json(path))

    family, vae = read_family(folder), settings("vae")
    first, *others = (family.describe(settings(name), vae) for name in family.transformers)
    for name, other in zip(family.transformers[1:], others, strict=True):
        for field, expected in asdict(first).items():
            if (came := getattr(other, field)) != expected:
                raise InputError(
                    f"{folder / name}: {field}: expected {expected}, as of the first transformer, came {came}; "
                    "download the checkpoint again, whole"
                )
    return first


def check_request(config: RunConfig, checkpoint: CheckpointInfo, *, world_size: int = 1) -> None:
    """Raise InputError for the first setting that the checkpoint, the device or the number of ranks cannot serve."""
    _check_size(config, checkpoint)
    _check_masks(config, checkpoint.num_blocks)
    length = config.sampling.max_sequence_length
    if checkpoint.text_length not in (None, length):
        raise InputError(
            f"sampling.max_sequence_length: expected {checkpoint.text_length}, which this checkpoint's "
            f"cross-attention counts on, came {length}"
        )
    if config.parallel.backend == "nccl" and config.model.device == "cpu":
        raise InputError("parallel.backend: nccl needs model.device cuda, came cpu: use gloo, or auto")
    _check_experts(config, checkpoint)
    if config.parallel.branch == 2 and 1 in config.guidance.cfg_scales:
        scale = "cfg_scale" if config.guidance.cfg_scale == 1 else "cfg_scale_2"
        raise InputError(
            f"parallel.branch: 2 runs cond and uncond side by side, but with guidance.{scale} 1 there is no uncond: "
            "set parallel.branch to 1, and all ranks share cond's tokens"
        )
    if config.parallel.decode == "sharded" and checkpoint.vae_class != WAN_VAE:
        raise InputError(
            f"parallel.decode: sharded needs {WAN_VAE}, this is {checkpoint.vae_class}: use tiled, or auto"
        )
    if config.model.lora:
        _check_loras(config, checkpoint)
    # What follows imports torch, so only where it is needed.
    if config.parallel.weights == "zero3":
        from .parallel.zero3 import require_deepspeed

        require_deepspeed()
    if (config.parallel.ulysses, config.parallel.ring, config.parallel.branch) != (None, None, 1):
        from .parallel.mesh import resolve_degrees

        if resolve_degrees(config.parallel, world_size)["ring"] > 1:
            from .parallel.ring import check_backend

            check_backend(config.model.attention_backend)
    if config.model.device == "cuda":
        from .parallel.mesh import resolve_device

        resolve_device("cuda")
    if config.model.attention_backend is not None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        names = [backend.value for backend in AttentionBackendName]
        if config.model.attention_backend not in names:
            public = ", ".join(name for name in names if not name.startswith("_"))
            raise InputError(
                f"model.attention_backend: expected one of {public}, came {config.model.attention_backend!r}"
            )


def check_images(checkpoint: CheckpointInfo, *, image: bool, last_image: bool) -> None:
    """Raise InputError unless such a checkpoint takes images so given, or none."""
    if last_image and not image:
        raise InputError("last_image: there is no first image: give --image too, or image in the config")
    for name, takes, given in (("image", checkpoint.image, image), ("last_image", checkpoint.last_image, last_image)):
        option = f"--{name.replace('_', '-')}"
        if given and takes == "none":
            raise InputError(f"{name}: this checkpoint takes none: leave it out, or choose a checkpoint that does")
        if not given and takes == "required":
            raise InputError(f"{name}: this checkpoint needs one: give {option}, or {name} in the config")


def _check_size(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    sampling = config.sampling
    for name, size, patch in (
        ("height", sampling.height, checkpoint.patch_size[1]),
        ("width", sampling.width, checkpoint.patch_size[2]),
    ):
        token = checkpoint.spatial_factor * patch
        step = math.lcm(token, _PIPELINE_MULTIPLE)
        if size % step != 0:
            raise InputError(f"sampling.{name}: expected a multiple of {step}, came {size}: {_nearest(size, step)}")
        if checkpoint.max_positions is not None and size // token > checkpoint.max_positions:
            raise InputError(
                f"sampling.{name}: expected at most {token * checkpoint.max_positions}, as far as the model's "
                f"positions reach, came {size}"
            )
    factor, frames = checkpoint.temporal_factor, sampling.num_frames
    step = factor * checkpoint.patch_size[0]
    offset = 1 + factor * (checkpoint.patch_size[0] - 1)  # the first latent frame holds one frame, later ones `factor`
    if (frames - offset) % step != 0:
        raise InputError(
            f"sampling.num_frames: expected {offset} more than a multiple of {step}, came {frames}: "
            f"{_nearest(frames, step, offset)}"
        )
    if checkpoint.max_positions is not None and 1 + (frames - offset) // step > checkpoint.max_positions:
        raise InputError(
            f"sampling.num_frames: expected at most {offset + step * (checkpoint.max_positions - 1)}, as far as the "
            f"model's positions reach, came {frames}"
        )


def _check_experts(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    if config.guidance.cfg_scale_2 is not None and checkpoint.boundary_ratio is None:
        raise InputError(
            f"guidance.cfg_scale_2: is for a second transformer, and this checkpoint has one; set it to null, came "
            f"{config.guidance.cfg_scale_2:g}"
        )
    if not config.model.offload_experts:
        return
    if checkpoint.boundary_ratio is None:
        raise InputError(
            "model.offload_experts: is for checkpoints with two transformers, and this one has a single one, which "
            "always has its turn: set it to false; parallel.weights streamed keeps its blocks in CPU memory"
        )
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.offload_experts: moves whole transformers, so it needs parallel.weights replicated, came "
            f"{config.parallel.weights}: set it to false"
            + (", for streamed blocks lie in CPU memory anyway" if config.parallel.weights == "streamed" else "")
        )


def _nearest(value: int, step: int, offset: int = 0) -> str:
    below = offset + (value - offset) // step * step
    legal = [number for number in (below, below + step) if number > 0]
    return f"the nearest are {legal[0]} and {legal[1]}" if len(legal) == 2 else f"the nearest is {legal[0]}"


def _check_masks(config: RunConfig, num_blocks: int) -> None:
    guidance = config.guidance
    blocks = f"the model's blocks, 0 to {num_blocks - 1}"
    if outside := [index for index in guidance.never_drop if index >= num_blocks]:
        raise InputError(f"guidance.never_drop: expected indices of {blocks}, came {outside[0]}")
    if outside := [index for index in guidance.slg.layers if index >= num_blocks]:
        raise InputError(f"guidance.slg.layers: expected indices of {blocks}, came {outside[0]}")
    if guidance.band is not None and guidance.band[1] >= num_blocks:
        raise InputError(f"guidance.band: expected indices of {blocks}, came {list(guidance.band)}")
    eligible = len(guidance.mask_spec().eligible(num_blocks))
    if guidance.drop_count is not None and guidance.drop_count > eligible:
        raise InputError(
            f"guidance.drop_count: expected at most {eligible}, the blocks that never_drop and band leave of "
            f"{num_blocks}, came {guidance.drop_count}"
        )


def _check_loras(config: RunConfig, checkpoint: CheckpointInfo) -> None:
    from .models.lora import find_lora, require_peft

    if not checkpoint.takes_lora:
        raise InputError("model.lora: diffusers loads no LoRA for this checkpoint's pipeline: leave it out")
    require_peft()
    if config.parallel.weights != "replicated":
        raise InputError(
            f"model.lora: needs the weights whole on every rank: set parallel.weights to replicated, which is "
            f"{config.parallel.weights}, or leave the LoRA out"
        )
    for lora in config.model.lora:
        if lora.component == "transformer_2" and checkpoint.boundary_ratio is None:
            raise InputError(f"model.lora: {lora.path}: this checkpoint has no {lora.component}")
        find_lora(lora.path)


def _checked_prompt(prompt: str, source: str) -> str:
    try:
        read_text(prompt)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    if not prompt.strip():
        raise InputError(f"{source}: expected some text, came an empty prompt: say what the video shows")
    return prompt
