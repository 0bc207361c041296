"""The content of a sidecar X.json, which is validated here and published as a JSON Schema.

Knows neither tensors nor how a video is made; `sidecar.py` fills it in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..config.fields import MAX_STEPS, Text
from ..config.run import RunConfig
from ..config.text import describe_problems, show
from ..errors import InputError
from ..media.formats import FORMATS
from ..system.files import is_hidden
from ..system.json_reader import read_json

SCHEMA_VERSION = 1
METADATA_KEY = "s2video"  # in headers of safetensors, which map strings to strings; ours is one JSON document
MAX_BLOCKS = 10_000

Count = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrawnMask(_Part):
    """The blocks that one sub pass skipped."""

    step: Count = Field(description="denoising step, from 0")
    draw: Count = Field(description="draw within the step, from 0")
    dropped: tuple[Count, ...] = Field(description="indices of the skipped blocks, ascending")


class ComputedSteps(_Part):
    """The steps that computed a prediction, from 0; the other steps that used it forecast it."""

    cond: tuple[Count, ...] = Field(description="steps with a cond pass")
    uncond: tuple[Count, ...] = Field(description="steps with an uncond pass; none if λ = 1")
    sub: tuple[Count, ...] = Field(description="steps with sub passes")


class StepScale(_Part):
    """The strength of S² in one step."""

    step: Count = Field(description="denoising step, from 0")
    s2_scale: FiniteFloat = Field(description="ω")


class CutPrompt(_Part):
    """A prompt that was longer than the model reads."""

    field: Literal["prompt", "negative_prompt"] = Field(description="which one")
    kept: Count = Field(
        description="tokens that the encoder read: config.sampling.max_sequence_length for the first encoder"
    )
    tokens: Count = Field(description="tokens of the prompt, without any template around it")
    encoder: Literal["CLIP", "ByT5"] | None = Field(
        default=None, description="the text encoder; null: the first. ByT5 reads only text in quotes"
    )


class LoraRecord(_Part):
    """What became of the tensors of a LoRA file; `weights` has its digest."""

    component: str = Field(description="the transformer that it changes")
    scale: FiniteFloat = Field(description="its strength")
    tensors: Count = Field(description="tensors in the file")
    applied: Count = Field(description="those that were applied")
    not_applied: dict[str, tuple[str, ...]] = Field(description="reasons, and names of the tensors, at most 100 each")


class ImageRecord(_Part):
    """The first or last image of the video."""

    path: str = Field(description="path of the file during the run")
    digest: Digest = Field(
        description='SHA-256 of the size as "(width, height)" and the pixels as 8-bit RGB, row by row'
    )


class ControlRecord(_Part):
    """A video, a mask or a reference that steered the video."""

    kind: Literal["video", "mask", "reference"] = Field(description="which one")
    path: str = Field(description="path of the file or folder during the run")
    frames: Count = Field(description="frames that were used")
    sha256: Digest = Field(
        description='SHA-256 of their number and size as "N (width, height)" and the pixels of all, row by row: 8-bit '
        "RGB, or grey for a mask; video and mask at the size of the video"
    )


class LatentsRecord(_Part):
    """Values to compare other latents with, exactly or approximately."""

    shape: tuple[Count, Count, Count, Count, Count] = Field(description="[1, C, T, H, W]")
    sha256: Digest = Field(description="SHA-256 of the values as little-endian float32, in row-major order")
    probes: tuple[FiniteFloat, ...] = Field(
        min_length=64,
        max_length=64,
        description="64 of the n values in row-major order; number k, from 0, is at position p modulo n, where p is "
        "the big-endian number in the first 8 bytes of the SHA-256 of k in decimal digits",
    )


class OutputRecord(_Part):
    """The video file or sequence."""

    name: str = Field(
        pattern=r"^[^/\x00]*[^/.\x00][^/\x00]*$",  # not a path, not . or ..
        description="name of the file, or of a sequence's folder, in the sidecar's folder",
    )
    bytes: Count = Field(description="size of the file, or of all files of a sequence")
    sha256: Digest = Field(
        description="SHA-256 of the file; for a sequence, of the output of `sha256sum *` in its folder"
    )


class CredentialsRecord(_Part):
    """Who signed the video's file with Content Credentials (C2PA)."""

    signer: str = Field(description="name of the certificate")
    issuer: str = Field(description="name of the one who issued it")
    certificate_sha256: Digest = Field(description="SHA-256 of the certificate, as DER")
    valid_until: str = Field(description="its last day, ISO 8601")


class MeshRecord(_Part):
    """The ranks that made the video."""

    world_size: Count = Field(description="number of ranks: ring × ulysses × branch")
    ring: Count = Field(description="size of the ring axis, which passes keys and values around")
    ulysses: Count = Field(description="size of the ulysses axis, which exchanges tokens for heads")
    branch: Count = Field(description="size of the branch axis; 2 runs cond and uncond in parallel")
    backend: str | None = Field(description="gloo or nccl; null for a single process")
    device: str = Field(description="cpu or cuda")


class MachineRecord(_Part):
    """The properties of the machine that can change the last bits."""

    device: str = Field(description="the GPU's name, or the CPU's instruction sets")
    threads: Count = Field(description="number of torch's CPU threads")
    attention: str | None = Field(
        default=None, description="the attention kernel; native: torch's choice; older sidecars do not have this"
    )
    tf32: bool | None = Field(
        default=None,
        description="whether float32 convolutions on a GPU used TF32 (10 bits); older sidecars do not have this",
    )


class DecodedRecord(_Part):
    """What decoded the latents, if not the run that denoised them."""

    machine: MachineRecord = Field(description="the machine")
    versions: dict[str, str] = Field(description="package versions that can change the last bits")


class JobFacts(BaseModel):
    """What decoding uses of the facts in the header of saved latents; a tensor without any can be decoded too."""

    prompt: Text = ""
    seed: Count = 0
    model: Text = ""
    config: dict[str, Any] = {}


class Sidecar(_Part):
    """How s2video made a video: enough to make it again and to compare the result."""

    schema_version: Literal[1] = Field(alias="schema", description="version of this format")
    prompt: str = Field(description="the prompt")
    negative_prompt: str = Field(description="the prompt of the uncond pass")
    cut_prompts: tuple[CutPrompt, ...] = Field(
        default=(), description="prompts of which the model read only the beginning; older sidecars do not have this"
    )
    images: tuple[ImageRecord, ...] = Field(
        max_length=2, description="the first and, optionally, the last image; empty without images"
    )
    control: tuple[ControlRecord, ...] = Field(
        default=(), description="what steered the video, if the model takes control; older sidecars do not have this"
    )
    seed: Count = Field(description="seed of the noise")
    mask_seed: Count = Field(description="seed of the masks")
    model: str = Field(description="the embedded model's name, a folder, or a Hub id")
    num_blocks: Count = Field(le=MAX_BLOCKS, description="blocks of the transformer")
    num_steps: Count | None = Field(
        default=None,
        le=MAX_STEPS,
        description="steps of the scheduler; null in older sidecars means config.sampling.num_inference_steps",
    )
    config: RunConfig = Field(description="every setting of the run")
    masks: tuple[DrawnMask, ...] = Field(description="every mask drawn; empty without S²-Guidance")
    computed: ComputedSteps | None = Field(
        default=None,
        description="what config.guidance.reuse computed; null, also in older sidecars: all that every step used",
    )
    s2_scales: tuple[StepScale, ...] = Field(
        default=(), description="ω of the steps in which S² acted, if config.guidance.s2_push decided it"
    )
    weights: dict[str, Digest] = Field(description="SHA-256 of every weight file, by its name in the checkpoint")
    conversions: dict[str, str] = Field(
        default={}, description="components whose files had other names or formats, and how they were converted"
    )
    loras: tuple[LoraRecord, ...] = Field(default=(), description="what of each LoRA was applied")
    latents: LatentsRecord = Field(description="the denoised latents, before decoding")
    output: OutputRecord = Field(description="the video file or sequence")
    credentials: CredentialsRecord | None = Field(
        default=None, description="who signed the file; null if it is not signed, and in older sidecars"
    )
    take: str | None = Field(
        default=None,
        pattern=r"^[^/\x00]*[^/.\x00][^/\x00]*$",
        description="name of the take whose frames these are, without suffix, if this file is not its master: the "
        "record of the take is TAKE.json; null for the master, and in older sidecars",
    )
    decoded: DecodedRecord | None = Field(
        default=None,
        description="what decoded the latents later; null: the run that denoised them, or an older sidecar",
    )
    resumed_after_step: int | None = Field(
        ge=1, le=MAX_STEPS, description="step of the resume point that the run continued from; null if uninterrupted"
    )
    mesh: MeshRecord = Field(description="the ranks that made the video")
    machine: MachineRecord = Field(description="the machine of the main rank")
    versions: dict[str, str] = Field(description="package versions that can change the last bits")
    timings: dict[str, float] = Field(description="seconds, by phase")
    model_files: dict[str, Digest] = Field(
        default={},
        description="SHA-256 of the checkpoint's other files (settings, tokenizers), by name; older sidecars do not "
        "have this",
    )
    audio_sha256: Digest | None = Field(
        default=None, description="SHA-256 of the file of config.output.audio; null: no sound, or an older sidecar"
    )
    sound: Literal["model"] | None = Field(
        default=None,
        description="model: the file has the sound that the model made with the picture, from the same latents; null: "
        "that of config.output.audio, or none, and in older sidecars",
    )
    record_sha256: Digest | None = Field(
        default=None,
        description="SHA-256 of this document without this key, as JSON with sorted keys, no white space, and escapes "
        "for all characters outside ASCII; null in older sidecars",
    )

    @field_validator("masks")
    @classmethod
    def _check_masks(cls, masks: tuple[DrawnMask, ...], info: ValidationInfo) -> tuple[DrawnMask, ...]:
        if {"num_blocks", "config"} <= info.data.keys():  # else they have errors of their own
            blocks, config = info.data["num_blocks"], info.data["config"]
            steps = info.data.get("num_steps") or config.sampling.num_inference_steps
            for mask in masks:
                if mask.step >= steps or any(block >= blocks for block in mask.dropped):
                    raise ValueError(
                        f"expected masks of {steps} steps and {blocks} blocks, got {show(mask.model_dump())}"
                    )
        if len({(mask.step, mask.draw) for mask in masks}) < len(masks):
            raise ValueError("expected one mask for each step and draw, got one twice")
        return masks

    @model_validator(mode="after")
    def _agrees_with_its_config(self) -> Sidecar:
        config = self.config
        said = {
            "prompt": (self.prompt, "prompt", config.prompt or ""),
            "negative_prompt": (self.negative_prompt, "negative_prompt", config.negative_prompt),
            "seed": (self.seed, "sampling.seed", config.sampling.seed),
            "model": (self.model, "model.path", config.model.path),
        }
        if config.guidance.mask_seed is not None:
            said["mask_seed"] = (self.mask_seed, "guidance.mask_seed", config.guidance.mask_seed)
        for name, (value, key, other) in said.items():
            if value != other:
                raise ValueError(
                    f"expected {name} and config.{key} to be the same, got {show(value)} and {show(other)}"
                )
        return self

    @property
    def steps_taken(self) -> int:
        """Number of denoising steps; the steps in `masks` count from 0 to this."""
        return self.config.sampling.num_inference_steps if self.num_steps is None else self.num_steps

    def as_json(self) -> dict[str, Any]:
        """Return the content of X.json."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], output: Mapping[str, Any] | None = None) -> Sidecar:
        """Return the sidecar of a video from what is known about its run.

        Args:
            output: `OutputRecord` of its file; None: there is no file yet, and a stand-in is recorded.

        Raises:
            ValidationError: facts that are not those of a run.
        """
        file = {"name": "none", "bytes": 0, "sha256": "0" * 64} if output is None else output
        values = cls.model_validate(
            {"schema": SCHEMA_VERSION, **facts, "output": file, "record_sha256": None}
        ).as_json()
        return cls.model_validate(values | {"record_sha256": record_digest(values)})


def record_digest(values: Mapping[str, Any]) -> str:
    """Return the `record_sha256` of a sidecar with these values, as JSON gives them."""
    rest = {key: value for key, value in values.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def has_own_digest(values: Mapping[str, Any]) -> bool:
    """Return whether a sidecar, or the facts in a file of latents, are as they were written, if they have a digest."""
    return "record_sha256" not in values or values["record_sha256"] == record_digest(values)


class MadeVideo(NamedTuple):
    """A video and its sidecar."""

    path: Path
    sidecar: Sidecar


def sidecar_schema() -> dict[str, Any]:
    """Return the JSON Schema of a sidecar, which docs/sidecar.schema.json publishes."""
    schema = _standard(Sidecar.model_json_schema(mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "s2video sidecar"}


def _standard(schema: Any) -> Any:
    """Rename bounds to standard keywords, because pydantic uses its own after a custom validator."""
    names = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
    if isinstance(schema, dict):
        return {names.get(key, key): _standard(value) for key, value in schema.items()}
    return [_standard(value) for value in schema] if isinstance(schema, list) else schema


def find_sidecar(path: Path) -> Path:
    """Return the sidecar of a video (a file, or a sequence's folder), of latents, or the sidecar itself.

    A file has a sidecar under its whole name (X.mov.json), or is the master of a take, with the sidecar X.json.

    Raises:
        InputError: if there is none.
    """
    if not path.exists():
        raise InputError(
            f"{path}: expected a video, its sidecar X.json, or its X.latents.safetensors, got no file; check the path"
        )
    path = path if path.name else path.resolve()  # "." has no name
    stem = path.name if path.is_dir() else path.stem
    if not stem:
        raise InputError(f"{path}: expected a video, its sidecar X.json, or its X.latents.safetensors, got a folder")
    master, own = path.with_name(f"{stem.removesuffix('.latents')}.json"), _own_sidecars(path)
    candidates = (
        [master, *own] if path.is_dir() else [*own, master]
    )  # the sidecar X.json of a sequence has its whole name
    present = [candidate for candidate in candidates if candidate.is_file()]
    if not present:
        raise InputError(f"{path}: expected its sidecar {master.name} next to it, got none; keep both in one folder")
    other = master if master in present else present[0]  # of another file, or damaged, as its reader will say
    return next((candidate for candidate in present if _named_in(candidate) == path.name), other)


def is_sequence(path: Path) -> bool:
    """Return whether a path is the folder of a sequence with a sidecar, and not a folder of videos."""
    try:
        return path.is_dir() and _named_in(find_sidecar(path)) is not None
    except InputError:
        return False


def _own_sidecars(path: Path) -> list[Path]:
    """Return the names that a sidecar of this file or folder alone can have."""
    if path.is_dir():
        suffixes = [format.suffix for format in FORMATS.values() if format.is_sequence]
        return [path.with_name(f"{path.name}{suffix}.json") for suffix in suffixes]
    return [path.with_name(f"{path.name}.json")]


def _named_in(sidecar: Path) -> str | None:
    """Return the name of the video that a sidecar describes; None if it is missing or no sidecar."""
    try:
        name = read_json(sidecar)["output"]["name"]
    except (InputError, OSError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


def read_sidecar(path: Path) -> Sidecar:
    """Read X.json. Raises InputError if it is not a sidecar, or has another schema version."""
    values = read_json(path, remedy="pass a video or its sidecar X.json")
    if not isinstance(values, dict) or "schema" not in values:
        raise InputError(f"{path}: expected a sidecar of s2video, got JSON without the key `schema`; check the path")
    if values["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected schema {SCHEMA_VERSION}, got {str(values['schema'])[:40]!r}; use the version of "
            "s2video in its `versions`"
        )
    try:
        return Sidecar.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {describe_problems(error, Sidecar)}") from None


def videos_in(folder: Path) -> list[MadeVideo]:
    """Return the videos in a folder and its subfolders, found by their sidecars and sorted by path.

    Ignores other JSON files and hidden ones. Raises InputError if a sidecar is invalid.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        if is_hidden(path, folder):
            continue
        try:
            values = read_json(path)
        except InputError:
            continue
        if isinstance(values, dict) and {"schema", "latents", "masks"} <= values.keys():
            sidecar = read_sidecar(path)
            found.append(MadeVideo(path.with_name(sidecar.output.name), sidecar))
    return found
