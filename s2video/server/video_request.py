"""From the fields of a request to the config of a job: what a client may set, and how seconds and size are read.

A client names no path and no program. It chooses a model and LoRAs by the names that the operator gave them, and sets
guidance, sampling and how the video is written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..batch.checks import find_problems
from ..batch.plan import models_of
from ..batch.records import Entry
from ..batch.run_file import BatchJob
from ..config.guidance import GuidanceConfig
from ..config.marks import settings_that_name
from ..config.run import RunConfig
from ..config.sections import LoraConfig, SamplingConfig
from ..errors import InputError
from ..media.formats import FORMATS, suffix_of
from ..models.checkpoint import OpenModel
from ..records.identity import job_key
from ..system.json_reader import parse_json
from .jobs import Request, new_id

VIDEOS = "videos"  # the folder of all files of jobs, below the server's
_SOURCE = "request"  # what messages name as the origin of settings
OUTPUT_SETTINGS = ("codec", "fps", "crf", "timecode")
FIELDS = ("prompt", "model", "seconds", "size", "seed", "negative_prompt", "input_reference", "lora", *OUTPUT_SETTINGS)
SECTIONS: Mapping[str, type[BaseModel]] = {"guidance": GuidanceConfig, "sampling": SamplingConfig}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        prompt: characters.
        pixels: of one frame.
        frames: of one video.
        steps: of denoising.
        waiting: jobs in the queue.
        body: bytes of a request.
    """

    prompt: int = 10_000
    pixels: int = 1280 * 720
    frames: int = 257
    steps: int = 200
    waiting: int = 1000
    body: int = 32 * 2**20


class FieldError(InputError):
    """A field that cannot be used.

    Attributes:
        field: its name, as the client gave it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Models:
    """The models and LoRAs of a server, by the operator's names. The first model is the default.

    Args:
        configs: settings of each model.
        loras: files.
    """

    def __init__(self, configs: Mapping[str, RunConfig], loras: Mapping[str, Path], open_model: OpenModel) -> None:
        self.configs, self.loras = configs, loras
        self.open = cache(open_model)

    def config(self, name: str | None) -> tuple[str, RunConfig]:
        """Return a model's name and settings. Raises FieldError for a name that is not one of these."""
        name = name or next(iter(self.configs))
        if name not in self.configs:
            known = ", ".join(self.configs)
            raise FieldError("model", f"model: expected one of {known}, got {name[:80]!r}")
        return name, self.configs[name]

    def lora(self, text: str) -> list[LoraConfig]:
        """Return LoRAs for text such as "style" or "style:0.8, detail". Raises FieldError."""
        found = []
        for part in text.split(","):
            name, _, scale = part.strip().partition(":")
            if name not in self.loras:
                known = ", ".join(self.loras) or "none"
                raise FieldError("lora", f"lora: this server has {known}, got {name[:80]!r}")
            try:
                found.append(LoraConfig(path=str(self.loras[name]), scale=float(scale or 1)))
            except ValueError:
                raise FieldError("lora", f"lora: expected NAME or NAME:SCALE, got {part[:80]!r}") from None
        return found


def read_request(
    fields: Mapping[str, Any], models: Models, folder: Path, limits: Limits, *, image: Path | None, world_size: int
) -> Request:
    """Return a request for the queue, with everything checked that is known before models are loaded.

    Args:
        fields: by name; `guidance` and `sampling` are mappings.
        folder: the server's.
        image: the first image, a file that the server wrote.
        world_size: ranks of a replica.

    Raises:
        FieldError, InputError: something that cannot be used.
    """
    _check_names(fields)
    prompt = _text(fields, "prompt", limits.prompt)
    if not prompt.strip():
        raise FieldError("prompt", "prompt: expected a sentence on what the video shows, got none")
    name, base = models.config(_text(fields, "model", 200) or None)
    changes = _changes(fields, base, models)
    config = _patched(base, changes)
    config = _patched(config, _frames(fields, config, models))
    _check_limits(config, limits)
    identifier = new_id()
    output = folder / VIDEOS / f"{identifier}{suffix_of(config.output.codec)}"
    job_settings = {"prompt": prompt, "negative_prompt": _text(fields, "negative_prompt", limits.prompt)}
    if image is not None:
        job_settings["image"] = str(image)
    files = {"output.path": str(output), "output.keep_latents": True}
    config = _patched(config, {**job_settings, **files, "model.lora": changes["model.lora"]})
    job = BatchJob(output.relative_to(folder).as_posix(), _SOURCE, config)
    _check_image(models.open(*config.model.source).info.image, image is not None)
    for problem in find_problems([job], models.open, world_size=world_size, images=True):
        raise _of_field(problem)
    return Request(
        id=identifier,
        model=name,
        entry=_entry(job, models),
        shown=_shown(config, name),
        steps=config.sampling.num_inference_steps,
        digest=_digest(fields, image),
    )


def _patched(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the config with changes. Raises FieldError for the first that cannot be made."""
    try:
        return config.patched(changes, _SOURCE)
    except InputError as error:
        raise _of_field(str(error)) from None


def _of_field(problem: str) -> FieldError:
    sentence = problem.removeprefix(f"{_SOURCE}: ")
    return FieldError(_field_of(sentence), sentence.removeprefix("output."))


def _check_image(wanted: str, is_given: bool) -> None:
    """Raise FieldError, in a client's words, if an image is missing or of no use."""
    if wanted == "required" and not is_given:
        raise FieldError("input_reference", "input_reference: expected an image for this model, got none")
    if wanted == "none" and is_given:
        raise FieldError("input_reference", "input_reference: expected none for this model, got an image")


def _digest(fields: Mapping[str, Any], image: Path | None) -> str:
    name = None if image is None else image.name.partition(".")[0]  # the digest of its bytes
    everything = json.dumps([dict(fields), name], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()


def _check_names(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in SECTIONS:
            if not isinstance(value, Mapping):
                raise FieldError(
                    name, f"{name}: expected settings, such as {name}[{_example(name)}], got {value!r:.80}"
                )
            for key in value:
                if key not in allowed(name):
                    raise FieldError(
                        f"{name}[{key}]", f"{name}: expected one of {', '.join(allowed(name))}, got {key!r:.80}"
                    )
        elif name not in FIELDS:
            raise FieldError(name, f"expected fields among {', '.join((*FIELDS, *SECTIONS))}, got {name!r:.80}")


def _example(section: str) -> str:
    return {"guidance": "s2_scale", "sampling": "num_inference_steps"}[section]


@cache
def allowed(section: str) -> tuple[str, ...]:
    """Return the settings of a section that a client may set: those that name nothing outside the config."""
    return tuple(key for key in SECTIONS[section].model_fields if f"{section}.{key}" not in settings_that_name())


def _text(fields: Mapping[str, Any], name: str, most: int) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise FieldError(name, f"{name}: expected text, got {value!r:.80}")
    if len(value) > most:
        raise FieldError(name, f"{name}: expected at most {most} characters, got {len(value)}")
    return value


def _changes(fields: Mapping[str, Any], base: RunConfig, models: Models) -> dict[str, Any]:
    """Return the settings that a request makes, by dotted key; text of a form is read as YAML reads a number."""
    changes: dict[str, Any] = {}
    for section in SECTIONS:
        for key, value in fields.get(section, {}).items():
            changes[f"{section}.{key}"] = _value(value)
    for key in OUTPUT_SETTINGS:
        if key in fields:
            changes[f"output.{key}"] = fields[key] if key in ("codec", "timecode") else _value(fields[key])
    if "seed" in fields:
        changes["sampling.seed"] = _value(fields["seed"])
    if "size" in fields:
        changes["sampling.width"], changes["sampling.height"] = _size(fields["size"])
    loras = [lora.model_dump(mode="json") for lora in base.model.lora]
    if text := _text(fields, "lora", 1000):
        loras += [lora.model_dump(mode="json") for lora in models.lora(text)]
    return {**changes, "model.lora": loras}


def _value(text: Any) -> Any:
    """Return a form's text as the number, list or switch that it is; other values as they are."""
    if not isinstance(text, str) or len(text) > 200:
        return text
    try:
        return parse_json(text, "form")
    except InputError:  # a word, which a JSON body would have in quotes
        return text


def _size(text: Any) -> tuple[int, int]:
    width, separator, height = str(text).lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal() and len(str(text)) < 20):
        raise FieldError("size", f"size: expected WIDTHxHEIGHT, such as 832x480, got {text!r:.80}")
    return int(width), int(height)


def _frames(fields: Mapping[str, Any], config: RunConfig, models: Models) -> dict[str, Any]:
    """Return the number of frames for `seconds`: the nearest that the model can make."""
    if "seconds" not in fields:
        return {}
    if "num_frames" in fields.get("sampling", {}):
        raise FieldError("seconds", "seconds: expected either seconds or sampling[num_frames], got both")
    text = str(fields["seconds"])
    try:
        seconds = float(text) if len(text) < 20 else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 3600:
        raise FieldError("seconds", f"seconds: expected a number above 0, got {text!r:.80}")
    grid = models.open(*config.model.source).info.frames
    wanted = Fraction(str(seconds)) * config.output.fps
    return {"sampling.num_frames": grid.nearest(wanted)}


def _check_limits(config: RunConfig, limits: Limits) -> None:
    sampling = config.sampling
    checks = (
        ("size", "pixels of a frame", sampling.width * sampling.height, limits.pixels),
        ("seconds", "frames", sampling.num_frames, limits.frames),
        ("sampling[num_inference_steps]", "steps", sampling.num_inference_steps, limits.steps),
        ("guidance[num_draws]", "masks of a step", config.guidance.num_draws, 16),
    )
    for field, what, value, most in checks:
        if value > most:
            raise FieldError(field, f"{field}: this server makes at most {most} {what}, got {value}")


def _field_of(sentence: str) -> str:
    """Return the client's name of the setting that a message starts with; empty if it is none of theirs."""
    key = sentence.split(" ", 1)[0].rstrip(":")
    section, _, name = key.partition(".")
    if section in SECTIONS:
        known = {"": section, "width": "size", "height": "size", "seed": "seed"}
        return known.get(name, f"{section}[{name.partition('.')[0]}]")
    if section == "output":
        return name if name in OUTPUT_SETTINGS else ""
    return {"image": "input_reference"}.get(section, section if section in FIELDS else "")


def _entry(job: BatchJob, models: Models) -> Entry:
    config = job.config
    digests = models.open(*config.model.source).digests()
    return Entry(
        name=job.name,
        place=job.where,
        models=models_of(config),
        config=config.model_dump_json(),
        key=job_key(config, digests),
        work=None,
    )


def _shown(config: RunConfig, model: str) -> dict[str, Any]:
    """Return what a client reads back about its request."""
    sampling = config.sampling
    return {
        "model": model,
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "image": None if config.image is None else Path(config.image).name,
        "size": f"{sampling.width}x{sampling.height}",
        "seconds": f"{float(sampling.num_frames / config.output.fps):.3f}".rstrip("0").rstrip("."),
        "frames": sampling.num_frames,
        "fps": str(config.output.fps),
        "seed": sampling.seed,
        "steps": sampling.num_inference_steps,
        "cfg_scale": config.guidance.cfg_scale,
        "s2_scale": config.guidance.s2_scale,
        "codec": config.output.codec if config.output.codec in FORMATS else "h264",
    }
