"""s2video from Python, in one process: load a model, call it with a prompt, save the video or stream its frames.

For several ranks use the command line (`s2video launch`), or `s2video.Engine` under torchrun.
"""

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .config.run import RunConfig
from .engine.engine import Engine, OnStep
from .engine.make_video import denoise_in_memory
from .errors import InputError
from .media.checks import check_output
from .media.formats import Codec
from .media.output_paths import OutputPaths
from .media.sound import Sound, wav_of
from .media.video import write_videos
from .models.checkpoint import open_checkpoint
from .models.control import read_pictures
from .models.recipes import load_config, load_model_config
from .planning.plan import resolve_parallel
from .records.identity import audio_digest
from .records.replacing import check_inputs_kept, check_replacing, inputs_of
from .records.targets import targets_of
from .system import ranks
from .system.claims import Claims
from .system.files import user_path
from .system.progress import Style


@dataclass(frozen=True)
class Video:
    """A video in memory.

    Attributes:
        frames: float32 [T, H, W, 3], RGB in [0, 1], on the CPU.
        latents: the latents that it was decoded from, float32 [1, C, T', H', W'], on the CPU.
        config: every setting that it was made with.
        facts: the contents of its sidecar: prompt, seed, masks, digests of weights and latents, versions, timings, ...
        sound: the sound that the model made with it; None for a model that makes none.
    """

    frames: Tensor = field(repr=False)
    latents: Tensor = field(repr=False)
    config: RunConfig
    facts: Mapping[str, Any] = field(repr=False)
    sound: Sound | None = field(default=None, repr=False)

    def save(
        self, path: str | Path, codec: Codec | Literal["auto"] = "auto", *, overwrite: bool = False, **output: Any
    ) -> Path:
        """Write the video, and its sidecar next to it, both or neither.

        Args:
            path: with the suffix of its format; a sequence X.exr becomes the folder X.
            codec: h264, h265, prores, dnxhr, png, exr, or auto: by the suffix.
            overwrite: replace files that s2video did not make, or that were changed since; its own are always replaced.
            output: other settings of the config's section `output` for this file, such as `crf=12`, or
                `also=["h264"]` for more files of the same frames.

        Returns:
            The file, or the folder of a sequence.

        Raises:
            InputError: a path or a setting that cannot be used, or files that may not be replaced.
        """
        path = user_path(path)
        config = self.config.patched({"output": {"codec": codec, "also": [], **output, "path": str(path)}}, "save")
        changed = {"config": config.model_dump(mode="json"), "audio_sha256": audio_digest(config)}
        own = None if config.output.audio is not None else self.sound
        if own is not None and config.output.fps != self.config.output.fps:
            raise InputError(
                f"output.fps: expected {self.config.output.fps}, for which the model made its sound, got "
                f"{config.output.fps}; change it, or name another sound in output.audio"
            )
        facts = {**self.facts, **changed, "sound": None if own is None else "model"}
        files = OutputPaths.of(config)
        check_output(files)
        check_inputs_kept(files.all, inputs_of(config))
        check_replacing(files, overwrite=overwrite)
        with Claims(files.locks), wav_of(own) as wav:
            write_videos([self.frames], targets_of(config, facts, lambda file: facts, sound=wav))
        return files.video


class TextToVideo:
    """A loaded model. A call can change every setting that `load` takes, except those of `model` and `parallel`.

    Threads can share it: calls and streams denoise one after the other, and no result depends on the others. A stream
    can be left half read while other calls are made, and continued afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def config(self) -> RunConfig:
        """The settings of a call that changes none."""
        return self._engine.config

    def __call__(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative_prompt: str | None = None,
        image: str | Path | None = None,
        last_image: str | Path | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Video:
        """Make one video.

        Args:
            prompt: what the video shows.
            seed: of the noise, and of the masks unless `guidance.mask_seed` is set; None: `sampling.seed`.
            negative_prompt: prompt of the uncond pass; None: that of the config.
            image: first image of the video, a file, for models that take one; None: that of the config.
            last_image: last image, for models that take two; likewise.
            on_step: called after each denoising step with (steps done, steps in all). If it returns False, the call
                ends with a StoppedError; its own exceptions reach the caller.

        Raises:
            InputError: a prompt or a setting that cannot be used.
            StoppedError: `on_step` returned False.
            NumericalError: NaN or infinity in the latents or in a frame.
        """
        job = self._job(prompt, seed, negative_prompt, image, last_image, settings)
        denoised = denoise_in_memory(self._engine, job, on_step)
        start = time.monotonic()
        frames = torch.cat([chunk.cpu() for chunk in denoised.engine.decode(denoised.latents)])
        facts = denoised.all_facts(time.monotonic() - start)
        return Video(frames, denoised.latents.cpu(), job, facts, denoised.engine.sound(denoised.latents))

    def stream(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        negative_prompt: str | None = None,
        image: str | Path | None = None,
        last_image: str | Path | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Generator[Tensor, None, None]:
        """Yield the frames of one video, each chunk [t, H, W, 3] as soon as it is decoded; otherwise as in a call.

        Sound that the model makes is left out.

        Bad input is refused at once. Denoising starts when the first chunk is requested, and memory does not grow with
        the number of frames. Closing the generator, or leaving its loop, stops the work.
        """
        job = self._job(prompt, seed, negative_prompt, image, last_image, settings)
        engine = self._engine.with_config(job)
        read_pictures(job)

        def chunks() -> Generator[Tensor, None, None]:
            denoised = denoise_in_memory(engine, job, on_step)
            for chunk in engine.decode(denoised.latents):
                yield chunk.cpu()

        return chunks()

    def _job(
        self,
        prompt: str,
        seed: int | None,
        negative_prompt: str | None,
        image: str | Path | None,
        last_image: str | Path | None,
        settings: Mapping[str, Any],
    ) -> RunConfig:
        """The settings of one call, including prompt and seed."""
        files = {
            key: None if path is None else str(path) for key, path in (("image", image), ("last_image", last_image))
        }
        named = {"prompt": prompt, "sampling.seed": seed, "negative_prompt": negative_prompt, **files}
        job = self.config.patched(settings).patched({k: value for k, value in named.items() if value is not None})
        if not (job.prompt or "").strip():
            raise InputError(f"prompt: expected some text, got {prompt!r}: say what the video shows")
        return job


def load(model: str | Path = "shapes-wan", *, progress: Style = "none", **settings: Any) -> TextToVideo:
    """Load a model, for this process.

    Args:
        model: a name of `s2video models`, a folder, or a Hub id, with the settings of its recipe (the general defaults
            if it has none); or a YAML file as in configs/.
        progress: how denoising is shown: "none", "plain" lines, a "bar", or "auto".
        settings: changes, by section, `guidance={"s2_scale": 0.5}`, or by dotted name, `**{"guidance.s2_scale": 0.5}`.

    Raises:
        InputError: a model that is missing or damaged, or a setting that cannot be used.
    """
    if ranks.world_size() != 1:
        raise InputError("s2video.load is for one process: under torchrun use s2video.Engine")
    if not isinstance(model, (str, Path)):
        raise InputError(f"model: expected a name, a path or a Hub id, got {type(model).__name__}; see s2video models")
    if Path(model).suffix in (".yaml", ".yml"):
        config = load_config(model).patched(settings)
    else:
        config = load_model_config(str(model), settings).config
    checkpoint = open_checkpoint(*config.model.source)
    config = resolve_parallel(config, checkpoint, 1)
    return TextToVideo(Engine(config, checkpoint=checkpoint, progress=progress))
