"""The models of a run, ready for jobs: prompts -> latents -> frames. Every rank runs this file; it writes none.

config + prompt -> text embeddings and seeded noise -> each step: masks, predictions, guided prediction, scheduler
step -> latents -> frames
"""

import copy
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..config.run import RunConfig, build_config
from ..decoding.decoder import FrameDecoder
from ..errors import InputError, StoppedError
from ..geometry import LatentShape
from ..guidance.equations import needs_uncond
from ..guidance.masks import MaskSchedule
from ..models.base import Conditioning, Given
from ..models.checkpoint import (
    check_checkpoint,
    find_checkpoint,
    fingerprint,
    read_checkpoint,
    read_family,
    weight_digests,
)
from ..models.experts import Expert, Experts
from ..models.image_encoder import ImageEncoder
from ..models.images import Images
from ..models.limits import check_images, check_request
from ..models.loading import load_conditioners, load_scheduler, load_vae
from ..models.lora import load_loras, lora_digests
from ..models.parts import place_transformer
from ..models.text import TextEncoder
from ..parallel.agreement import require_agreement
from ..parallel.collectives import any_rank
from ..parallel.mesh import Mesh, resolve_device
from ..records.checkpoint import Checkpoints
from ..records.sidecar import versions
from ..sampling.denoiser import Denoiser
from ..sampling.sampler import sample
from ..system.progress import Progress, Style
from ..system.shutdown import Termination

OnStep = Callable[[int, int], object]
Around = Callable[[Denoiser, Tensor, Tensor, int], Tensor]
_OF_JOBS = ("prompt", "negative_prompt", "image", "last_image")  # settings that are only defaults of the command line


class Engine:
    """The models of one config, on this rank, ready for jobs.

    All ranks of the mesh construct it and call its methods together.

    Args:
        config: the run. Its prompt, images, seed and output are only defaults for callers; jobs bring their own.
        mesh: from `init_mesh`; None for a single process on the configured device.
        progress: how `sample` shows its steps, see `Progress`.
        termination: the process's way to take SIGTERM; while denoising, it is deferred to the end of a step.

    Raises:
        InputError: a checkpoint that is missing, incomplete or damaged, or a setting it cannot serve.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh | None = None,
        *,
        progress: Style = "auto",
        termination: Termination | None = None,
    ) -> None:
        start = time.monotonic()
        if mesh is None:
            mesh = Mesh(resolve_device(config.model.device))
        mesh.watch.report("loading")
        self.config = config
        self.mesh = mesh
        self.folder = find_checkpoint(config.model.path, config.model.revision)
        check_checkpoint(self.folder)
        self._family = read_family(self.folder)
        self.checkpoint = read_checkpoint(self.folder)
        check_request(config, self.checkpoint, world_size=mesh.world.size)
        self._progress: Style = progress if mesh.is_main else "none"
        self._termination = termination or Termination()
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._fingerprint = fingerprint(self.folder)
        self._lora_digests = lora_digests(config.model.lora)
        self._digests: Future[dict[str, str]] | None = None
        conditioners = None
        if mesh.is_main:
            # gigabytes to hash, while the ranks compute; the result is wanted only for the sidecar
            self._digests = ThreadPoolExecutor(1).submit(weight_digests, self.folder)
            dtypes = (config.model.text_encoder_dtype, config.model.image_encoder_dtype)
            conditioners = load_conditioners(self.folder, *(getattr(torch, dtype) for dtype in dtypes))
        self._load_vae = cache(lambda: load_vae(self.folder, getattr(torch, config.model.vae_dtype), mesh.device))
        self._decoders: dict[int, FrameDecoder] = {}
        pipeline = None
        if conditioners is not None:
            pipeline = self._family.build_pipeline(conditioners, self._decoder.vae)
        self._encode_images = ImageEncoder(self._family, pipeline, mesh, offload=config.model.offload_text_encoder)
        self._encode_text = TextEncoder(
            self._family,
            pipeline,
            mesh,
            dtype=self._dtype,
            offload=config.model.offload_text_encoder,
            stream=config.model.stream_text_encoder,
        )
        self._scheduler = load_scheduler(self.folder, config.sampling.flow_shift)
        boundary = self.checkpoint.boundary_ratio
        self._experts = Experts(
            [self._load_expert(name) for name in self._family.transformers],
            boundary=None if boundary is None else boundary * self._scheduler.config.num_train_timesteps,
            device=mesh.device if config.model.offload_experts else None,
        )
        self.load_seconds = time.monotonic() - start

    def _load_expert(self, component: str) -> Expert:
        rests = self.config.model.offload_experts and component != self._family.transformers[0]
        transformer, weights = place_transformer(
            self.folder, self._dtype, self.mesh, self.config.parallel, self._family.block_lists, component, rests=rests
        )
        load_loras(transformer, self.config.model.lora, component, self._family.pipeline)
        model = self._family.block_model(transformer, self.config.model.attention_backend)
        return Expert(model, weights, transformer)

    def with_config(self, config: RunConfig) -> "Engine":
        """The same models under other settings of everything but `model` and `parallel`; loads no weights.

        Raises:
            InputError: those two differ, or the checkpoint cannot serve the new settings.
        """
        for section in ("model", "parallel"):
            if getattr(config, section) != getattr(self.config, section):
                raise InputError(f"{section}: its settings cannot change while its models are loaded: load them anew")
        check_request(config, self.checkpoint, world_size=self.mesh.world.size)
        other = copy.copy(self)
        other.config = config
        if config.sampling.flow_shift != self.config.sampling.flow_shift:
            other._scheduler = load_scheduler(self.folder, config.sampling.flow_shift)
        return other

    def with_guidance(self, **changes: Any) -> "Engine":
        """The same models under other guidance settings, such as `s2_scale=0.5`; costs nothing. Raises InputError."""
        values = self.config.model_dump(mode="json")
        values["guidance"] |= changes
        return self.with_config(build_config(values, "with_guidance"))

    @property
    def num_blocks(self) -> int:
        """Of the transformer, or of each of the two."""
        return self._experts.num_blocks

    @property
    def latent_shape(self) -> LatentShape:
        sampling = self.config.sampling
        return LatentShape.from_pixels(
            num_frames=sampling.num_frames,
            height=sampling.height,
            width=sampling.width,
            temporal_factor=self.checkpoint.temporal_factor,
            spatial_factor=self.checkpoint.spatial_factor,
        )

    @property
    def _decoder(self) -> FrameDecoder:
        """One for each number of ranks that pictures of a size can be shared out to."""
        shape, parallel = self.latent_shape, self.config.parallel
        num_ranks = min(self.mesh.world.size, max(shape.height, shape.width))
        if num_ranks not in self._decoders:
            self._decoders[num_ranks] = FrameDecoder(
                parallel.decode,
                self.mesh,
                shape,
                vae_class=self.checkpoint.vae_class,
                load_vae=self._load_vae,
                timeout_seconds=parallel.timeout_seconds,
            )
        return self._decoders[num_ranks]

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative_prompt: str = "",
        mask_seed: int | None = None,
        images: Images | None = None,
        checkpoints: Checkpoints | None = None,
        on_step: OnStep | None = None,
        around: Around | None = None,
    ) -> Tensor:
        """Denoise one latent for each (prompt, seed), as one batch: float32 [B, C, T, H, W], equal on all ranks.

        Args:
            mask_seed: None takes `guidance.mask_seed`, or else the seed. A batch shares its masks, so where its seeds
                differ one of the two has to be set.
            images: that the videos start from or end with, the same on all ranks; of any size.
            checkpoints: where there are some, the batch can be taken up again.
            on_step: called after each step with (steps done, steps in all); where it returns False, it asks to stop.
            around: for measurements: called in the place of the denoiser, with (denoiser, latents, timestep, step), on
                all ranks alike, it returns the step's prediction. Nothing compares it between ranks, and a sidecar does
                not know of it.

        Raises:
            InputError: images that the checkpoint does not take, or that are missing.
            StoppedError: on all ranks, at the end of a step, where one of them was asked to stop.
            AgreementError: before the first step, where ranks differ in anything that decides the result.
            NumericalError: NaN or infinity in the latents.
        """
        self.mesh.watch.meet()  # the main rank loads more than the others
        masks = self.mask_schedule(seeds, mask_seed)
        if images is not None:
            images = images.fitted(self.config.sampling.width, self.config.sampling.height)
        scheduler = self._timed_scheduler()
        num_steps = len(scheduler.timesteps)
        statement = self._statement(prompts, seeds, negative_prompt, masks.seed, images, scheduler)
        require_agreement(statement | {"resume": checkpoints is not None and checkpoints.resume}, self.mesh.world)
        check_images(self.checkpoint, image=images is not None, last_image=images is not None and bool(images.last))
        latents, first_step = self._noise(seeds), 0
        if checkpoints is not None:
            latents, first_step = checkpoints.begin(statement, scheduler, latents)
        given, denoise = self._denoiser(prompts, negative_prompt, masks, scheduler, images, latents)
        if not first_step:
            latents = given.start(latents)

        def denoise_in_sight(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
            self.mesh.watch.report("denoising", step + 1, num_steps)
            return around(denoise, latents, timestep, step) if around else denoise(latents, timestep, step)

        def step_done(done: int, total: int, latents: Tensor) -> None:
            progress(done, total)
            asked = self._termination.requested or (on_step is not None and on_step(done, total) is False)
            stops = any_rank(asked, self.mesh.world, self.mesh.device)
            if checkpoints is not None:
                checkpoints.step_done(done, total, latents, scheduler, stops=stops)
            elif stops:
                raise StoppedError(f"stopped as asked after step {done} of {total}")

        progress = Progress("denoising", self._progress, first=first_step)
        with progress, torch.no_grad(), self._termination.deferred():
            latents = sample(denoise_in_sight, latents, scheduler, first_step=first_step, on_step=step_done)
        return given.held(latents)

    def _denoiser(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        masks: MaskSchedule,
        scheduler: Any,
        images: Images | None,
        latents: Tensor,
    ) -> tuple[Given, Denoiser]:
        guidance = self.config.guidance

        def told(texts: Sequence[str], *, is_negative: bool) -> Conditioning:
            text = self._encode_text(
                texts,
                max_sequence_length=self.config.sampling.max_sequence_length,
                images=images,
                is_negative=is_negative,
            )
            return replace(text, guidance=guidance.embedded_scale)

        self.mesh.watch.report("encoding text")
        cond = told(prompts, is_negative=False)
        uncond = None
        if any(map(needs_uncond, guidance.cfg_scales)):
            uncond = told([negative_prompt] * len(prompts), is_negative=True)
        if images is not None:
            self.mesh.watch.report("encoding images")
        given = self._encode_images(images, latents)
        return given, Denoiser(
            self._experts,
            self.mesh,
            guidance,
            dtype=self._dtype,
            masks=masks,
            memory=scheduler,
            cond=cond,
            uncond=uncond,
            given=given,
        )

    def decode(self, latents: Tensor, *, alone: bool = False) -> Generator[Tensor, None, None]:
        """Frames of one video [1, C, T, H, W], as chunks of float32 [t, H, W, 3] in [0, 1], on the main rank.

        All ranks exhaust it together, the others receiving nothing; see `FrameDecoder`. Only where the main rank
        `can_decode_alone`, it may do so, in any thread, while the others do something else.
        """
        return self._decoder.alone(latents) if alone else self._decoder(latents)

    @property
    def can_decode_alone(self) -> bool:
        return not self._decoder.needs_others

    def weight_digests(self) -> dict[str, str]:
        """SHA-256 of the weight files. Main rank only."""
        assert self._digests is not None, "the main rank computes digests"
        return self._digests.result() | self._lora_digests

    def denoising_weights(self) -> dict[str, str]:
        """Those digests that decide the latents. Main rank only."""
        digests = self.weight_digests()
        if self.checkpoint.image != "none":  # the VAE encodes it
            return digests
        return {name: digest for name, digest in digests.items() if not name.startswith("vae/")}

    def mask_schedule(self, seeds: Sequence[int], mask_seed: int | None = None) -> MaskSchedule:
        """The masks that `sample` draws for a batch with these seeds. Raises InputError as `sample` does."""
        guidance = self.config.guidance
        if mask_seed is None:
            mask_seed = guidance.mask_seed
        if mask_seed is None and len(set(seeds)) != 1 and guidance.uses_s2:
            raise InputError("guidance.mask_seed: a batch with several seeds shares its masks; set one mask seed")
        return guidance.mask_schedule(
            num_blocks=self.num_blocks,
            seed=seeds[0] if mask_seed is None else mask_seed,
            num_steps=len(self._timed_scheduler().timesteps),
        )

    def _timed_scheduler(self) -> Any:
        """A scheduler before its first step; it keeps state from step to step, so each batch has its own."""
        scheduler = copy.deepcopy(self._scheduler)
        self._family.set_timesteps(scheduler, self.config.sampling.num_inference_steps, self.mesh.device)
        scheduler.set_begin_index(0)
        return scheduler

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """Noise [B, C, T, H, W], drawn whole on the CPU for each seed: no rank or device changes it."""
        shape = self.latent_shape
        size = (1, self.checkpoint.latent_channels, shape.frames, shape.height, shape.width)
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(noise).to(self.mesh.device)

    def _statement(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompt: str,
        mask_seed: int,
        images: Images | None,
        scheduler: Any,
    ) -> dict[str, Any]:
        """All that decides the latents, a field at a time, so that an error can name the one that differs."""
        settings = self.config.model_dump(mode="json", exclude={*_OF_JOBS, "output"})
        statement = {
            f"{section}.{field}": value for section, fields in settings.items() for field, value in fields.items()
        }
        statement |= {
            "prompt": list(prompts),
            "negative_prompt": negative_prompt,
            "seed": list(seeds),
            "guidance.mask_seed": mask_seed,
            "images": [] if images is None else images.digests(),
            "weights": self._fingerprint,
            "model.lora": self._lora_digests,
            "latent_shape": [self.latent_shape.frames, self.latent_shape.height, self.latent_shape.width],
            # what diffusers adds for itself stands in the order of a set, which differs from process to process
            "scheduler": {key: value for key, value in scheduler.config.items() if not key.startswith("_")},
            "scheduler class": type(scheduler).__name__,
            "versions": versions(),
            # chooses kernels where the config names none, and kernels differ in the last bits
            "attention backend (DIFFUSERS_ATTN_BACKEND)": os.environ.get("DIFFUSERS_ATTN_BACKEND"),
        }
        for ignored in ("offload_text_encoder", "stream_text_encoder", "offload_experts", "path"):
            statement.pop(f"model.{ignored}")
        statement.pop("sampling.seed")
        return statement
