"""What a sidecar X.json holds: read and checked here, and published as a JSON Schema.

Knows no tensors and nothing of how a video is made; `sidecar.py` fills it in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..config.run import RunConfig
from ..config.text import describe_problems
from ..errors import InputError

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrawnMask(_Part):
    """The blocks that one sub pass left out."""

    step: Count = Field(description="denoising step, from 0")
    draw: Count = Field(description="draw within the step, from 0")
    dropped: tuple[Count, ...] = Field(description="indices of the blocks left out, ascending")


class CutPrompt(_Part):
    """A prompt that was longer than the model reads."""

    field: Literal["prompt", "negative_prompt"] = Field(description="which one")
    kept: Count = Field(description="tokens that the model read: config.sampling.max_sequence_length")
    tokens: Count = Field(description="tokens of the prompt, without any template around it")


class ImageRecord(_Part):
    """An image that the video started from, or ended with."""

    path: str = Field(description="where it was")
    digest: Digest = Field(
        description='SHA-256 of its size as "(width, height)" and its pixels as 8-bit RGB, row by row'
    )


class LatentsRecord(_Part):
    """By what other latents are told to be the same: to the bit, or nearly so."""

    shape: tuple[Count, Count, Count, Count, Count] = Field(description="[1, C, T, H, W]")
    sha256: Digest = Field(description="SHA-256 of the values as little-endian float32, in row-major order")
    probes: tuple[float, ...] = Field(
        description="64 of the n values, in row-major order: number k, from 0, at the position that the first 8 bytes "
        "of the SHA-256 of k in decimal digits are, as a big-endian number, modulo n"
    )


class OutputRecord(_Part):
    """The video as it was written."""

    name: str = Field(description="of the file, or of a sequence's folder, in the sidecar's own folder")
    bytes: Count = Field(description="size of the file or the files")
    sha256: Digest = Field(description="SHA-256 of the file; of a sequence, that of what `sha256sum *` prints in it")


class MeshRecord(_Part):
    """The ranks that made the video."""

    world_size: Count = Field(description="ranks; ring × ulysses × branch")
    ring: Count = Field(description="groups of ranks among which keys and values went round")
    ulysses: Count = Field(description="ranks that traded tokens for heads")
    branch: Count = Field(description="2: cond and uncond ran side by side")
    backend: str | None = Field(description="gloo or nccl; null: a single process")
    device: str = Field(description="cpu or cuda")


class MachineRecord(_Part):
    """What computed, as far as it can change the last bits."""

    device: str = Field(description="the GPU's name, or the CPU's instruction sets")
    threads: Count = Field(description="torch's threads on the CPU")


class Sidecar(_Part):
    """How a video was made by s2video: enough to make it again, and to tell whether it is the same."""

    schema_version: Literal[1] = Field(alias="schema", description="version of this format")
    prompt: str = Field(description="what the video shows")
    negative_prompt: str = Field(description="what the uncond pass was told")
    cut_prompts: tuple[CutPrompt, ...] = Field(
        default=(), description="prompts of which the end was ignored; older sidecars do not say"
    )
    images: tuple[ImageRecord, ...] = Field(description="the first image, and perhaps the last; empty: none was given")
    seed: Count = Field(description="seed of the noise")
    mask_seed: Count = Field(description="seed of the masks")
    model: str = Field(description="the embedded model's name, a folder, or a Hub id")
    num_blocks: Count = Field(description="blocks of the transformer")
    num_steps: Count | None = Field(
        default=None,
        description="steps that the scheduler took; null, in older sidecars: config.sampling.num_inference_steps",
    )
    config: RunConfig = Field(description="every setting of the run")
    masks: tuple[DrawnMask, ...] = Field(description="every mask drawn; empty without S²-Guidance")
    weights: dict[str, Digest] = Field(description="SHA-256 of every file of weights, by its name in the checkpoint")
    latents: LatentsRecord = Field(description="what was denoised, and then decoded")
    output: OutputRecord = Field(description="the video")
    resumed_after_step: int | None = Field(description="where a checkpoint was taken up; null: made in one go")
    mesh: MeshRecord = Field(description="the ranks that made it")
    machine: MachineRecord = Field(description="what computed on the main rank")
    versions: dict[str, str] = Field(description="versions that can change the last bits")
    timings: dict[str, float] = Field(description="seconds, by what they were spent on")

    @property
    def steps_taken(self) -> int:
        """Denoising steps, of which `masks` names some."""
        return self.config.sampling.num_inference_steps if self.num_steps is None else self.num_steps

    def as_json(self) -> dict[str, Any]:
        """What X.json holds."""
        return self.model_dump(mode="json", by_alias=True)


class MadeVideo(NamedTuple):
    """A video and what its sidecar says."""

    path: Path
    sidecar: Sidecar


def sidecar_schema() -> dict[str, Any]:
    """The JSON Schema of a sidecar, as docs/sidecar.schema.json holds it."""
    schema = _standard(Sidecar.model_json_schema(mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "s2video sidecar"}


def _standard(schema: Any) -> Any:
    """pydantic leaves bounds that follow a validator of ours under names of its own."""
    names = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
    if isinstance(schema, dict):
        return {names.get(key, key): _standard(value) for key, value in schema.items()}
    return [_standard(value) for value in schema] if isinstance(schema, list) else schema


def find_sidecar(path: Path) -> Path:
    """The sidecar of a video (a file, or the folder of a sequence), of latents, or the sidecar itself.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file: expected a video, its sidecar X.json, or its X.latents.safetensors")
    stem = path.name if path.is_dir() else path.stem
    sidecar = path.with_name(f"{stem.removesuffix('.latents')}.json")
    if not sidecar.is_file():
        raise InputError(f"{path}: there is no {sidecar.name} beside it, which would say how it was made")
    return sidecar


def read_sidecar(path: Path) -> Sidecar:
    """Read X.json. Raises InputError for a file that is no sidecar, or one of another version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a sidecar in JSON ({error})") from None
    if not isinstance(values, dict) or "schema" not in values:
        raise InputError(f"{path}: expected a sidecar of s2video, which has the key `schema`")
    if values["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected schema {SCHEMA_VERSION}, got {str(values['schema'])[:40]!r}: use the version of "
            "s2video that wrote it, which is named under `versions`"
        )
    try:
        return Sidecar.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {describe_problems(error, Sidecar)}") from None


def videos_in(folder: Path) -> list[MadeVideo]:
    """The videos of a run's folder and the folders in it, by their sidecars, sorted by path.

    Other JSON files are passed over. Raises InputError for a sidecar that cannot be used.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict) and {"schema", "latents", "masks"} <= values.keys():
            sidecar = read_sidecar(path)
            found.append(MadeVideo(path.with_name(sidecar.output.name), sidecar))
    return found
