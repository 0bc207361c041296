"""Which calls are cond, found by their embeddings; steps of diffusion forcing; outputs of several parts."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput
from shapes.caption_encoder import build_tokenizer
from tiny import tiny_text_encoder
from tiny_matrix import MINIATURES
from tiny_models import SIZE, WAN, model, pipeline
from torch import Tensor, nn

import s2video
from s2video.errors import InputError
from s2video.integrations import control, kinds
from s2video.integrations.outputs import prediction, with_prediction
from s2video.integrations.structure import block_lists

ALWAYS = {"s2_scale": 0.4, "drop_count": 2, "window": (0, 1)}


@pytest.fixture(scope="module")
def encoding() -> Any:
    """A pipeline that names no call, with its text encoder."""
    pipe = pipeline(
        "WanVideoToVideoPipeline",
        transformer=model("WanTransformer3DModel", **{**WAN, "text_dim": 128}),
        vae=tiny_models.build_vae(),
        scheduler=tiny_models.build_scheduler(),
        tokenizer=build_tokenizer(),
        text_encoder=tiny_text_encoder(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **changes: Any) -> Tensor:
    settings = {"video": tiny_models.video(), "strength": 1.0, "num_inference_steps": 2, "max_sequence_length": 32}
    settings |= {"prompt": "a red circle", "negative_prompt": "a blue square", "output_type": "latent", **SIZE}
    made: Tensor = pipe(**{**settings, **changes}, generator=torch.Generator().manual_seed(7)).frames
    return made


class Calls:
    """The text of each call that is cond, and the masks of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[Tensor] = []
        self.masks: list[Any] = []
        computed = control.Control._computed

        def recorded(self_: Any, transformer: Any, call: Any, masks: Any) -> Any:
            self.texts.append(call.keywords["encoder_hidden_states"])
            self.masks.append(masks)
            return computed(self_, transformer, call, masks)

        monkeypatch.setattr(control.Control, "_computed", recorded)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": ["a red circle", "a green circle"], "negative_prompt": ["a blue square", ""]},
        {"guidance_scale": 1.0},
    ],
    ids=["one", "two-prompts", "no-cfg"],
)
def test_cond_is_the_call_with_the_prompt(
    encoding: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    calls = Calls(monkeypatch)
    s2video.enable(encoding, **ALWAYS)
    run(encoding, **changes)
    s2video.disable(encoding)
    prompt = changes.get("prompt", "a red circle")
    with torch.no_grad():
        expected, _ = encoding.encode_prompt(prompt, None, False, max_sequence_length=32)
    assert len(calls.texts) == 2 and all(torch.equal(text, expected) for text in calls.texts)


def test_what_cannot_be_told_apart_is_refused(encoding: Any) -> None:
    s2video.enable(encoding, **ALWAYS)
    with pytest.raises(InputError, match="a prompt and a negative prompt that differ"):
        run(encoding, negative_prompt="a red circle")
    run(encoding, negative_prompt="a red circle", guidance_scale=1.0)
    inputs = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with pytest.raises(InputError, match="with the embeddings that WanVideoToVideoPipeline encoded"):
        run(encoding, callback_on_step_end=lambda *a: {"prompt_embeds": 2 * a[3]["prompt_embeds"]}, **inputs)
    s2video.disable(encoding)


def test_a_call_within_a_call_is_refused_and_leaves_the_first_one_alone(encoding: Any) -> None:
    s2video.enable(encoding, **ALWAYS)
    expected = run(encoding)

    def call_again(pipe: Any, *rest: Any) -> dict[str, Any]:
        with pytest.raises(InputError, match="another call of an enabled pipeline is using now"):
            run(pipe, prompt="a green star")
        return {}

    assert torch.equal(run(encoding, callback_on_step_end=call_again), expected)


def test_embeddings_of_the_user_are_found(encoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    given = tiny_models.texts(128)
    s2video.enable(encoding, **ALWAYS)
    run(encoding, prompt=None, negative_prompt=None, **given)
    s2video.disable(encoding)
    assert len(calls.texts) == 2 and torch.equal(calls.texts[0], given["prompt_embeds"])


def test_prompts_are_told_apart_that_are_encoded_in_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """HunyuanVideo encodes the negative prompt on its own, with a black image: embeddings of one prompt can differ."""
    pipe, arguments = MINIATURES["HunyuanVideoImageToVideoPipeline"].built()
    names = [name for name in arguments if "prompt" in name]
    seen = {
        "cat": arguments,
        "": {name: arguments[f"negative_{name}"] for name in names if f"negative_{name}" in names},
    }
    order = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")

    def encode(prompt: str, **_: Any) -> tuple[Tensor, ...]:
        return tuple(seen[prompt][name] for name in order)

    monkeypatch.setattr(pipe, "check_inputs", lambda *_, **__: None)
    monkeypatch.setattr(type(pipe), "encode_prompt", lambda self, prompt, image=None, **more: encode(prompt, **more))
    calls = Calls(monkeypatch)
    others = {name: value for name, value in arguments.items() if name not in names}
    s2video.enable(pipe, **ALWAYS)
    settings = {**others, "num_inference_steps": 2, "output_type": "latent"}
    pipe(prompt="cat", negative_prompt="", **settings, generator=torch.Generator().manual_seed(7))
    s2video.disable(pipe)
    assert len(calls.texts) == 2 and all(torch.equal(text, arguments["prompt_embeds"]) for text in calls.texts)


@pytest.mark.parametrize("reuse", ["exact", "fast"])
def test_both_places_make_the_same_video(monkeypatch: pytest.MonkeyPatch, reuse: str) -> None:
    """Moving cond and uncond equals subtracting where the scheduler steps."""
    pipe, arguments = MINIATURES["SkyReelsV2Pipeline"].built()
    arguments = {**arguments, "num_inference_steps": 16, "output_type": "latent"}
    made = []
    for place in ("step", "calls"):
        monkeypatch.setitem(kinds._KINDS, "SkyReelsV2Pipeline", replace(kinds._STEP, place=place))
        s2video.enable(pipe, **ALWAYS, reuse=reuse)
        made.append(pipe(**arguments, generator=torch.Generator().manual_seed(7)).frames)
        s2video.disable(pipe)
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ar_step", [0, 2])
def test_steps_of_diffusion_forcing(monkeypatch: pytest.MonkeyPatch, ar_step: int) -> None:
    """A step is a row of timesteps; each has its own masks, and a second video has those of the first."""
    pipe, arguments = MINIATURES["SkyReelsV2DiffusionForcingPipeline"].built()
    arguments = {**arguments, "num_inference_steps": 4, "output_type": "latent", "ar_step": ar_step}
    calls = Calls(monkeypatch)
    s2video.enable(pipe, s2_scale=0.4, drop_count=2, window=(0, 1), mask_seed=5)
    made = [pipe(**arguments, generator=torch.Generator().manual_seed(7)).frames for _ in range(2)]
    guidance = pipe.__dict__["_s2video"].guidance
    s2video.disable(pipe)
    assert torch.equal(*made)
    num_steps = len(calls.masks) // 2
    assert num_steps == pipe.num_timesteps and (num_steps > 4) == (ar_step > 0)
    schedule = guidance.mask_schedule(num_blocks=6, seed=5, num_steps=num_steps)
    assert calls.masks == 2 * [schedule.step(step) for step in range(num_steps)]


def test_frames_one_after_the_other_have_no_level_of_noise() -> None:
    pipe, arguments = MINIATURES["SkyReelsV2DiffusionForcingPipeline"].built()
    s2video.enable(pipe, **ALWAYS, window_in="noise")
    with pytest.raises(InputError, match="or ar_step=0"):
        pipe(**arguments, num_inference_steps=4, ar_step=2)
    s2video.disable(pipe)


@pytest.mark.parametrize(
    "output",
    [
        torch.randn(2, 3, 4),
        (torch.randn(2, 3, 4),),
        Transformer2DModelOutput(sample=torch.randn(2, 3, 4)),
        (torch.randn(2, 3, 4), torch.randn(2, 5)),
        AudioVisualModelOutput(sample=torch.randn(2, 3, 4), audio_sample=torch.randn(2, 5)),
        ([torch.randn(3, 4), torch.randn(3, 4)],),
        (torch.randn(2, 3).bfloat16(), torch.randn(2, 5), "a cache"),
    ],
    ids=["tensor", "tuple", "output", "two", "two-named", "samples", "others"],
)
def test_outputs_have_one_prediction(output: Any) -> None:
    joined = prediction(output)
    assert len(joined) == 2
    again = with_prediction(output, 2 * joined.float())
    assert type(again) is type(output)
    torch.testing.assert_close(prediction(again).float(), 2 * joined.float())
    if isinstance(output, tuple):
        assert [type(one) for one in output] == [type(other) for other in again]
        assert all(
            one.dtype == other.dtype for one, other in zip(output, again, strict=True) if isinstance(one, Tensor)
        )


class Nameless(nn.Module):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        first, second = hidden_states.chunk(2)
        return first, second


def test_blocks_that_do_not_say_what_they_return_are_refused() -> None:
    transformer = nn.Module()
    transformer.blocks = nn.ModuleList([Nameless()])
    with pytest.raises(InputError, match="got Nameless in Module"):
        block_lists(transformer)
