"""Scores of videos by a CLIP model that the user has: how frames fit the prompt, and each other.

These are plain cosines of the model's embeddings. They are not VBench's dimensions, which have models, frames and
weights of their own.

Dimension letters: F frames, H, W rows and columns, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from ..media.video import read_video
from ..system.json_reader import read_json
from .clips import Study
from .scores import Scores

CLIP_MEASURES: Mapping[str, str] = {
    "clip_text": "mean cosine of the prompt and 8 evenly spaced frames in the CLIP model",
    "clip_consistency": "mean cosine of successive ones of these frames",
}
_NUM_FRAMES = 8
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, for RGB in [0, 1]


class ClipModel:
    """A CLIP model of transformers in a local folder, on the CPU or a GPU.

    Raises:
        InputError: no such folder, another kind of model, or weights that are missing.
    """

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json", remedy="pass the folder of a CLIP model of transformers")
        if not isinstance(config, dict) or config.get("model_type") != "clip":
            got = config.get("model_type") if isinstance(config, dict) else None
            raise InputError(
                f"--clip {folder}: expected a CLIP model (model_type clip), got {got!r}; use another folder"
            )
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, CLIPModel

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model, report = CLIPModel.from_pretrained(
                str(folder), use_safetensors=True, output_loading_info=True, **local
            )
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
            self._size = int(model.config.vision_config.image_size)
            self._max_tokens = int(model.config.text_config.max_position_embeddings)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--clip {folder}: cannot be loaded ({reason}); check the folder") from None
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"--clip {folder}: expected all weights of the model, {len(missing)} are missing, such as "
                f"{missing[0]}; download it again"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._mean, self._std = _normalization(folder)

    @torch.inference_mode()
    def scores(self, prompt: str, video: Path) -> dict[str, float]:
        """Return all of `CLIP_MEASURES` of a video; those that need two frames are missing if it has one."""
        frames = read_video(video)
        chosen = torch.linspace(0, len(frames) - 1, min(_NUM_FRAMES, len(frames))).round().long()
        vision = self._model.vision_model(pixel_values=self._prepared(frames[chosen]))
        images = functional.normalize(self._model.visual_projection(vision.pooler_output), dim=-1)  # [F, E]
        found = {"clip_text": float((images @ self._text(prompt)).mean())}
        if len(images) > 1:
            found["clip_consistency"] = float((images[1:] * images[:-1]).sum(-1).mean())
        return found

    def _text(self, prompt: str) -> Tensor:
        """Return the prompt's embedding [E]; a prompt that is too long is cut, as CLIP does."""
        tokens = self._tokenizer(prompt, return_tensors="pt", truncation=True, max_length=self._max_tokens)
        output = self._model.text_model(
            input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
        )
        text: Tensor = functional.normalize(self._model.text_projection(output.pooler_output), dim=-1)[0]
        return text

    def _prepared(self, frames: Tensor) -> Tensor:
        """Return frames uint8 [F, H, W, 3] as the model reads them: a square from the middle, normalized."""
        pixels = frames.permute(0, 3, 1, 2).to(self._device).float() / 255
        scale = self._size / min(pixels.shape[2:])
        size = [max(self._size, round(side * scale)) for side in pixels.shape[2:]]
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - self._size) // 2 for side in size)
        pixels = pixels[:, :, top : top + self._size, left : left + self._size]
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (self._mean, self._std))
        return (pixels - mean) / std


def clip_scores(study: Study, model: ClipModel) -> Scores:
    """Return the scores of all of a study's videos."""
    scores: Scores = {}
    for clip, setting, video in study.videos():
        for measure, value in model.scores(clip.prompt, video.path).items():
            scores.setdefault(measure, {})[clip.name, setting] = value
    return scores


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that the model's images have, of its own settings if there are any."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    pair: list[Any] = (
        [values.get(name) for name in ("image_mean", "image_std")] if isinstance(values, dict) else [values] * 2
    )
    if pair == [None, None]:
        return _MEAN, _STD
    for value in pair:
        if not (isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)):
            raise InputError(
                f"{path}: expected image_mean and image_std with three numbers, got others; check the file"
            )
    if not all(x > 0 for x in pair[1]):
        raise InputError(f"{path}: expected an image_std above 0, got {pair[1]}; check the file")
    return tuple(map(float, pair[0])), tuple(map(float, pair[1]))
