"""Boundaries where files become objects: images, videos, records, checkpoints, LoRAs, a batch's state."""

import contextlib
import copy
import io
import json
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image
from safetensors.torch import save

from fuzzing.mutations import mutate_bytes, mutate_json, mutate_tensors
from fuzzing.trial import Finding, Target
from s2video.batch.status import as_json, as_text, read_status
from s2video.batch.store import Entry, Store
from s2video.config.run import build_config
from s2video.config.sections import LoraConfig
from s2video.engine.decode_latents import decode_latents
from s2video.errors import InputError, StoppedError
from s2video.guidance.masks import MaskSchedule
from s2video.media.checks import check_spec
from s2video.media.formats import VideoSpec
from s2video.media.video import probe_video, read_video, write_video
from s2video.models import loading
from s2video.models.checkpoint import Checkpoint, find_checkpoint
from s2video.models.control import read_control
from s2video.models.gguf_header import read_gguf_header
from s2video.models.images import FORMATS, read_images
from s2video.models.lora import find_lora, load_loras
from s2video.models.weight_files import read_header
from s2video.parallel.mesh import Mesh
from s2video.records.resume import ResumePoint
from s2video.records.sidecar import job_facts, latents_record, make_sidecar, run_facts
from s2video.records.sidecar_model import METADATA_KEY, find_sidecar, read_sidecar, videos_in
from s2video.review.captions import Caption, caption_bar
from s2video.review.inspect import describe
from s2video.review.page import read_failures, write_page
from s2video.review.reproduce import check_images_again, job_again
from s2video.review.sheet import contact_sheet

CPU = Mesh(torch.device("cpu"))


def image(data: bytes, folder: Path) -> Any:
    (folder / "image").write_bytes(data)
    images = read_images(folder / "image", None)
    assert images is not None
    if images.fitted(16, 16).first.size != (16, 16):
        raise Finding("an image that does not fit")
    return images.digests()


def video(data: bytes, folder: Path) -> Any:
    (folder / "v.mp4").write_bytes(data)
    probe_video(folder / "v.mp4")
    contact_sheet([(folder / "v.mp4", Caption("v"))], folder / "sheet.png", columns=2)
    return read_video(folder / "v.mp4").shape


def control(data: bytes, folder: Path) -> Any:
    """A control video, with itself as its mask."""
    (folder / "v.mp4").write_bytes(data)
    names = {"video": str(folder / "v.mp4"), "mask": str(folder / "v.mp4")}
    found = read_control(build_config({"sampling": {"width": 32, "height": 32, "num_frames": 2}, "control": names}))
    if {frame.size for frame in (*found.video, *found.mask)} != {(32, 32)}:
        raise Finding("control that does not fit")
    return found.digests()


def sound(data: bytes, folder: Path) -> Any:
    (folder / "a.wav").write_bytes(data)
    return check_spec(VideoSpec(Fraction(24), audio=folder / "a.wav"), 64, 64)


def font(data: bytes, folder: Path) -> Any:
    (folder / "f.ttf").write_bytes(data)
    return caption_bar([(Caption("Title", "some text"), 0, 200)], 200, size=20, font=folder / "f.ttf").shape


def caption(data: bytes, folder: Path) -> Any:
    title, _, text = data.decode("utf-8", "surrogateescape").partition("\n")
    return caption_bar([(Caption(title, text), 0, 200)], 200, size=20).shape


def sidecar(data: bytes, folder: Path) -> Any:
    (folder / "clip.json").write_bytes(data)
    (folder / "clip.mp4").write_bytes(b"x")
    found = read_sidecar(find_sidecar(folder / "clip.mp4"))
    describe(found, folder / "clip.mp4")
    with contextlib.suppress(InputError):
        job_again(found, world_size=1, source="clip.json")
        check_images_again(found)
    return found


def page(data: bytes, folder: Path) -> Any:
    (folder / "clip.json").write_bytes(data)
    (folder / "clip.mp4").write_bytes(b"x")
    write_page(videos_in(folder), read_failures(folder), folder / "index.html", title="t", embed_below=10**6)
    text = (folder / "index.html").read_text(encoding="utf-8")
    if "<script>alert" in text:
        raise Finding("a script of the input")
    return "page"


def latents(data: bytes, folder: Path) -> Any:
    (folder / "x.latents.safetensors").write_bytes(data)
    return decode_latents(folder / "x.latents.safetensors", folder / "y.mp4")


def resume_point(data: bytes, folder: Path) -> Any:
    (folder / "x.checkpoint.safetensors").write_bytes(data)
    scheduler = _scheduler()
    point = ResumePoint(folder / "x.checkpoint.safetensors", CPU, dict, resume=True)
    found, steps = point.begin({"job": 1}, scheduler, _latents())
    point.restore(_Denoiser())
    if steps:
        scheduler.step(torch.zeros_like(found), scheduler.timesteps[steps], found)
    return steps


class _Denoiser:
    def state(self) -> dict[str, Any]:
        return {"momentum": torch.zeros(2)}

    def load_state(self, state: Any) -> None:
        dict(state)


def store(data: bytes, folder: Path) -> Any:
    (folder / "batch.sqlite").write_bytes(data)
    status = read_status(folder)
    as_text(status), as_json(status), read_failures(folder)
    made = Store(folder)
    made.create()
    made.begin()
    made.count_open()
    drawn = made.draw("r1")
    return drawn and made.finish(drawn.name, "r1", {drawn.name: "0" * 64})


def header(data: bytes, folder: Path) -> Any:
    (folder / "x.safetensors").write_bytes(data)
    read_header(folder / "x.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "x.safetensors", framework="pt") as file:  # what we let through, safetensors can read
        return [file.get_tensor(name).shape for name in list(file.keys())]


def gguf(data: bytes, folder: Path) -> Any:
    (folder / "x.gguf").write_bytes(data)
    return read_gguf_header(folder / "x.gguf")


def lora(data: bytes, folder: Path) -> Any:
    (folder / "x.safetensors").write_bytes(data)
    transformer = _transformer()
    load_loras(
        transformer, [LoraConfig(path=str(find_lora(str(folder / "x.safetensors"))))], "transformer", "WanPipeline"
    )
    return "loaded"


def component(checkpoint: Path, name: str) -> Callable[[bytes, Path], Any]:
    """One JSON file of a checkpoint in place of its own; the other files are links."""

    def run(data: bytes, folder: Path) -> Any:
        for file in checkpoint.rglob("*"):
            if file.is_file() and str(file.relative_to(checkpoint)) != name:
                target = folder / file.relative_to(checkpoint)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        opened = Checkpoint(folder)
        opened.check()
        info = opened.info
        part = name.partition("/")[0]
        if part in (*opened.transformers, "vae"):
            loading.check_component(opened, part)
        elif part == "scheduler":
            opened.family.set_timesteps(loading.load_scheduler(opened, 3.0), 4, torch.device("cpu"))
        elif part == "tokenizer":
            loading.load_tokenizer(opened)("a red circle")
        elif part == "text_encoder":
            loading.load_conditioners(opened, torch.float32)
        return info

    return run


def file_targets() -> list[Target]:
    """All targets; makes their seeds, which takes a few seconds."""
    checkpoint = find_checkpoint("shapes-wan")
    jsons = sorted(str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*.json"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = _clip(folder)
        record = (folder / "clip.json").read_bytes()
        saved = (_latents_file(record), _latents_file(record, is_older=True))
        pictures = tuple(_picture(kind) for kind in (*FORMATS, "DDS", "ICO", "TGA"))
        return [
            Target("image", pictures, image, mutate_bytes),
            Target("video", (clip,), video, mutate_bytes, 150),
            Target("control", (clip,), control, mutate_bytes, 40),
            Target("sound", (_sound(folder),), sound, mutate_bytes, 40),
            Target("font", (_font(),), font, mutate_bytes, 30),
            Target("caption", (b"CFG\na red circle", "S² ω\n猫 \u0301".encode()), caption, mutate_bytes, 5),
            Target("sidecar", (record,), sidecar, mutate_json, 8),
            Target("page", (record,), page, mutate_json, 12),
            Target("latents", saved, latents, mutate_tensors, 60),
            Target("resume point", (_resume_file(folder),), resume_point, mutate_tensors, 5),
            Target("batch store", (_store_file(folder),), store, mutate_bytes, 60),
            Target("weight header", (_header_file(),), header, mutate_tensors),
            Target("GGUF header", (_gguf_file(),), gguf, mutate_bytes),
            Target("LoRA", (_lora_file(),), lora, mutate_tensors, 25),
            *(
                Target(
                    f"checkpoint {name}",
                    ((checkpoint / name).read_bytes(),),
                    component(checkpoint, name),
                    mutate_json,
                    25,
                )
                for name in jsons
            ),
        ]


def _clip(folder: Path) -> bytes:
    config = build_config(
        {
            "prompt": "a red wall",
            "sampling": {"num_frames": 5, "num_inference_steps": 4, "seed": 7},
            "output": {"path": str(folder / "clip.mp4"), "fps": 8},
        }
    )
    masks: MaskSchedule = config.guidance.mask_schedule(num_blocks=12, seed=7, num_steps=4)
    facts = job_facts(config, images=[{"path": "start.png", "digest": "0" * 64}], masks=masks)
    facts |= run_facts(
        _latents(), CPU, weights={"vae/x.safetensors": "0" * 64}, timings={"x_seconds": 1.0}, attention="x"
    )
    frames = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    write_video([frames], folder / "clip.mp4", config.output.spec(folder / "clip.mp4"), metadata={"title": "t"})
    made = make_sidecar(facts, folder / "clip.mp4")
    (folder / "clip.json").write_text(json.dumps(made.as_json()), encoding="utf-8")
    return (folder / "clip.mp4").read_bytes()


def _picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    made, content = Image.fromarray(pixels), io.BytesIO()
    exif = made.getexif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF") else {}
    made.save(content, kind, **options)
    return content.getvalue()


def _sound(folder: Path) -> bytes:
    import wave

    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\0\1" * 400)
    return (folder / "a.wav").read_bytes()


def _font() -> bytes:
    from PIL import ImageFont

    made = ImageFont.load_default(20)
    assert isinstance(made, ImageFont.FreeTypeFont)
    return made.font_bytes if isinstance(made.font_bytes, bytes) else made.path.getvalue()


def _latents() -> torch.Tensor:
    return torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def _latents_file(record: bytes, *, is_older: bool = False) -> bytes:
    """A file of latents that says all about its run, or, as older ones, only what decided it.

    Neither has a digest of what it says, or every change would be refused before it gets far.
    """
    left_out = {"schema", "output", "record_sha256"} | ({"latents", "weights"} if is_older else set())
    facts = {key: value for key, value in json.loads(record).items() if key not in left_out}
    facts["config"]["model"] |= {"path": "shapes-wan", "device": "cpu"}
    facts["model"] = "shapes-wan"
    values = _latents()[:, :, :1].contiguous()
    if not is_older:
        facts["latents"] = latents_record(values).model_dump(mode="json")
    return save({"latents": values}, {METADATA_KEY: json.dumps(facts)})


def _scheduler() -> Any:
    made = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    made.set_timesteps(4)
    return copy.deepcopy(made)


def _resume_file(folder: Path) -> bytes:
    scheduler, found = _scheduler(), _latents()
    point = ResumePoint(folder / "r.checkpoint.safetensors", CPU, dict)
    point.begin({"job": 1}, scheduler, found)
    for index in (0, 1):
        found = scheduler.step(found, scheduler.timesteps[index], found).prev_sample
    with contextlib.suppress(StoppedError):
        point.step_done(2, 4, found, scheduler, _Denoiser(), stops=True)
    return (folder / "r.checkpoint.safetensors").read_bytes()


def _store_file(folder: Path) -> bytes:
    made = Store(folder / "batch")
    made.create()
    entries = [Entry(f"{i}.mp4", "here", "m", "{}", "k", 1.0) for i in range(4)]
    made.put(entries, frozenset())
    made.draw("r1")
    made.finish("0.mp4", "r1", {"0.mp4": "1" * 64})
    made.draw("r1")
    with contextlib.closing(sqlite3.connect(made.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    return made.path.read_bytes()


def _header_file() -> bytes:
    tensors = {"a": torch.zeros(2, 3), "b.weight": torch.zeros(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
    return save(tensors, {"format": "pt"})


def _gguf_file() -> bytes:
    """Two tensors of 8 and 64 numbers, after two notes, as ggml lays them out."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    notes = text("general.architecture") + struct.pack("<I", 8) + text("wan")
    notes += text("a.list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<2I", 1, 2)
    entries = text("a") + struct.pack("<IQIQ", 1, 8, 0, 0) + text("b") + struct.pack("<IQQIQ", 2, 32, 2, 8, 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + notes + entries
    return head + b"\0" * (-len(head) % 32) + b"\0" * (32 + 2 * 34)


def _transformer() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_layers=1, num_attention_heads=1, attention_head_dim=12, ffn_dim=16, text_dim=8, freq_dim=8
    )


def _lora_file() -> bytes:
    state = {}
    for layer in ("to_q", "to_k"):
        state[f"transformer.blocks.0.attn1.{layer}.lora_A.weight"] = torch.rand(2, 12)
        state[f"transformer.blocks.0.attn1.{layer}.lora_B.weight"] = torch.rand(12, 2)
    return save(state, {"format": "pt"})
