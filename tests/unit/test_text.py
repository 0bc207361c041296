"""Tests of text encoding: each prompt once, a bounded cache, and encoders that leave the device after use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, tiny_config

from s2video.models import text
from s2video.models.base import Conditioning
from s2video.models.checkpoint import Checkpoint
from s2video.models.loading import load_conditioners, load_tokenizer
from s2video.models.prompts import cut_prompts, cut_warning, text_readers
from s2video.models.text import TextEncoder
from s2video.parallel.mesh import Mesh


class Watched:
    """A `TextEncoder` with the tiny checkpoint's encoder, which records its calls."""

    def __init__(self, checkpoint: Path, *, offload: bool) -> None:
        family, components = Checkpoint(checkpoint).family, load_conditioners(Checkpoint(checkpoint), torch.float32)
        encoder = components["text_encoder"]
        self.events: list[Any] = []
        move = encoder.to
        encoder.to = lambda device: (self.events.append(str(device)), move(device))[1]
        encoder.register_forward_hook(lambda module, inputs, output: self.events.append(output[0].shape[0]))
        self._encode = TextEncoder(
            family,
            family.build_pipeline(components, None),
            Mesh(torch.device("cpu", 0)),  # differs from "cpu", where the encoder is kept
            dtype=torch.float32,
            offload=offload,
        )

    def encode(self, prompts: list[str], max_sequence_length: int = MAX_SEQUENCE_LENGTH) -> Conditioning:
        return self._encode(prompts, max_sequence_length=max_sequence_length)


def test_a_prompt_is_encoded_once(tiny_checkpoint: Path) -> None:
    watched = Watched(tiny_checkpoint, offload=False)
    first = watched.encode([PROMPT, "", PROMPT]).text
    assert first.shape == (3, MAX_SEQUENCE_LENGTH, 128) and watched.events == ["cpu:0", 2]
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(watched.encode([""]).text, first[1:2]) and watched.events == ["cpu:0", 2]
    assert watched.encode([PROMPT], max_sequence_length=16).text.shape == (
        1,
        16,
        128,
    )  # encoded again at another length


def test_the_encoder_leaves_the_device_after_each_use(tiny_checkpoint: Path) -> None:
    """So it is not on the device during denoising, which starts after all prompts are encoded."""
    watched = Watched(tiny_checkpoint, offload=True)
    watched.encode([PROMPT])
    watched.encode(["another", PROMPT])
    assert watched.events == ["cpu:0", 1, "cpu"] * 2


def test_the_least_recently_used_are_dropped(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one call has more prompts than the cache holds."""
    monkeypatch.setattr(text, "_CACHED", 2)
    watched = Watched(tiny_checkpoint, offload=False)
    assert watched.encode(["a", "b", "c"]).text.shape[0] == 3
    watched.encode(["b"])
    watched.encode(["d"])
    watched.events.clear()
    watched.encode(["b", "d"])
    assert watched.events == []
    watched.encode(["c"])
    assert watched.events == ["cpu:0", 1]


def test_a_streamed_encoder_is_a_whole_one_to_the_bit_and_leaves_the_device_empty(tiny_checkpoint: Path) -> None:
    def build(*, stream: bool) -> tuple[TextEncoder, torch.nn.Module]:
        family, components = (
            Checkpoint(tiny_checkpoint).family,
            load_conditioners(Checkpoint(tiny_checkpoint), torch.float32),
        )
        encode = TextEncoder(
            family,
            family.build_pipeline(components, None),
            Mesh(torch.device("cpu")),
            dtype=torch.float32,
            offload=True,
            stream=stream,
        )
        return encode, components["text_encoder"]

    whole, _ = build(stream=False)
    streamed, encoder = build(stream=True)
    first, second = encoder.encoder.block[:2]
    there: list[bool] = []
    second.register_forward_pre_hook(lambda *_: there.append(any(not p.is_meta for p in first.parameters())))
    for prompts in ([PROMPT, ""], ["another"]):
        texts = [encode(prompts, max_sequence_length=MAX_SEQUENCE_LENGTH).text for encode in (streamed, whole)]
        assert torch.equal(*texts)
        assert all(parameter.is_meta for parameter in encoder.parameters())
    assert there == [False, False]  # the first layer is off the device when the second runs


def test_prompts_that_are_cut_are_counted(tiny_checkpoint: Path) -> None:
    """Where uncond is not computed, a long negative prompt costs nothing."""
    checkpoint = Checkpoint(tiny_checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    readers = text_readers(checkpoint.family, {"tokenizer": tokenizer})
    config = tiny_config(tiny_checkpoint, cfg_scale=5).patched({"prompt": "red " * 90, "negative_prompt": "blue"})
    (cut,) = cut_prompts(config, readers)
    assert cut == {"field": "prompt", "kept": MAX_SEQUENCE_LENGTH, "tokens": len(tokenizer("red " * 90).input_ids)}
    assert cut["tokens"] > MAX_SEQUENCE_LENGTH
    assert f"reads {MAX_SEQUENCE_LENGTH} of its {cut['tokens']} tokens" in cut_warning(cut)
    fits = config.patched({"prompt": "a cat", "negative_prompt": "red " * 90})
    assert [cut["field"] for cut in cut_prompts(fits, readers)] == ["negative_prompt"]
    assert cut_prompts(fits.patched({"guidance.cfg_scale": 1}), readers) == []


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_familys_tokenizer_counts(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = family.build_checkpoint(tmp_path / name)
    config = family.config(folder).patched({"prompt": "red " * 900})
    checkpoint = Checkpoint(folder)
    names = [name for name in checkpoint.family.components if name.startswith("tokenizer")]
    readers = text_readers(checkpoint.family, {name: load_tokenizer(checkpoint, name) for name in names})
    cut, *others = cut_prompts(config, readers)
    assert cut["tokens"] >= 900 and "encoder" not in cut
    assert [other["encoder"] for other in others] == (
        ["CLIP"] if checkpoint.family.second_text == ("CLIP", 77, False) else []
    )
    assert cut_prompts(config.patched({"prompt": "red"}), readers) == []


@pytest.mark.parametrize(
    ("name", "prompt", "encoder", "limit"),
    [
        ("hunyuan-video", "red " * 90, "CLIP", 77),
        ("hunyuan-video-1.5", f'a sign that says "{"red " * 90}"', "ByT5", 256),
        ("hunyuan-video-1.5", f"a sign that says “{'red ' * 90}”", "ByT5", 256),
    ],
)
def test_a_second_text_encoder_has_a_limit_of_its_own(
    checkpoint_of: Callable[[str], Path], name: str, prompt: str, encoder: str, limit: int
) -> None:
    """Each is counted by its own tokenizer: CLIP the whole prompt, ByT5 what is in quotes."""
    checkpoint = Checkpoint(checkpoint_of(name))
    tokenizers = {key: load_tokenizer(checkpoint, key) for key in ("tokenizer", "tokenizer_2")}
    readers = text_readers(checkpoint.family, tokenizers)
    config = FAMILIES[name].config(checkpoint.folder).patched({"prompt": prompt})
    (cut,) = [cut for cut in cut_prompts(config, readers) if cut.get("encoder")]
    assert (cut["field"], cut["encoder"], cut["kept"]) == ("prompt", encoder, limit) and cut["tokens"] > limit
    assert f"{encoder}, the model's second text encoder, reads {limit} of its {cut['tokens']} tokens" in cut_warning(
        cut
    )
    plain = config.patched({"prompt": "red " * (10 if encoder == "CLIP" else 90)})
    assert not any(cut.get("encoder") for cut in cut_prompts(plain, readers))


def test_encoders_stay_for_all_prompts_of_a_video(tiny_checkpoint: Path) -> None:
    """cond's prompts and uncond's are two calls, but one stay on the device; a cached prompt needs none."""
    watched = Watched(tiny_checkpoint, offload=True)
    for _ in range(2):
        with watched._encode.kept():
            watched.encode([PROMPT])
            watched.encode([""])
        assert watched.events == ["cpu:0", 1, 1, "cpu"]
