"""The models of a run, ready for jobs: prompts -> latents -> frames. Every rank runs this; no file is written here.

config and prompt -> text embeddings and seeded noise -> in each step masks, predictions, guided prediction, scheduler
step -> latents -> frames
"""

import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ..config.run import RunConfig
from ..errors import InputError, StoppedError
from ..geometry import LatentShape
from ..guidance.masks import MaskSchedule
from ..guidance.reuse import StepPasses
from ..media.sound import Sound
from ..models.base import ImageConditioning
from ..models.checkpoint import Checkpoint, open_checkpoint
from ..models.control import Control, Pictures
from ..models.experts import Experts, check_machine, load_expert
from ..models.images import Images
from ..models.limits import check_images, check_request
from ..models.loading import load_scheduler
from ..models.lora import AppliedLora
from ..models.noise_levels import noise_levels
from ..models.schedulers import choose_scheduler, set_steps, step_noise
from ..parallel.agreement import require_agreement
from ..parallel.attention import attention_kernel
from ..parallel.collectives import any_rank
from ..parallel.mesh import Mesh, resolve_device
from ..parallel.ring import named_backend
from ..records.resume import ResumePoint
from ..records.sidecar import machine_settings
from ..sampling.denoiser import Denoiser
from ..sampling.passes import step_passes
from ..sampling.sampler import sample
from ..system.progress import Progress, Style
from ..system.shutdown import Termination
from ..system.terminal import say
from .decoders import Decoders
from .digests import Digests
from .encoders import Encoders, num_references
from .statement import Batch, latents_statement, rank_statement

_OF_SCHEDULER = ("flow_shift", "scheduler", "scheduler_options", "sigmas")
OnStep = Callable[[int, int], object]
Around = Callable[[Denoiser, Tensor, Tensor, int], Tensor]


class Engine:
    """The models of one config, on this rank, ready for jobs.

    All ranks of the mesh construct it and call its methods together. In a single process, threads can share an engine:
    calls of `sample` wait for each other, and so do the chunks of `decode`, whose state belongs to each call.

    Args:
        config: the run. `with_config` gives the same models another prompt, seed, size or guidance.
        mesh: from `init_mesh`; None for a single process on the configured device.
        checkpoint: the opened checkpoint of `config.model`; None: it is opened here.
        progress: how `sample` shows its steps, see `Progress`.
        termination: handles SIGTERM; while denoising, a request waits for the end of a step.

    Attributes:
        digests: of the files that it was loaded from.
        s2_scales: of the last `sample`, (step, ω of each video) for the steps in which `guidance.s2_push` decided it.

    Raises:
        InputError: a checkpoint that is missing, incomplete or damaged, or a setting that it cannot serve.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        progress: Style = "auto",
        termination: Termination | None = None,
    ) -> None:
        start = time.monotonic()
        self.config = config
        self.mesh = mesh = Mesh(resolve_device(config.model.device)) if mesh is None else mesh
        mesh.watch.report("loading")
        self.checkpoint = checkpoint or open_checkpoint(*config.model.source)
        check_request(config, self.checkpoint.info, world_size=mesh.world.size)
        check_machine(self.checkpoint, config, mesh.device)
        self._family = self.checkpoint.family
        self._progress: Style = progress if mesh.is_main else "none"
        self._termination = termination or Termination()
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self.digests = Digests(self.checkpoint, config.model.lora, mesh)
        # Copies of this engine share what follows. A batch decodes in one thread and denoises in another, so this lock
        # is not the decoders'; whoever has both took this one first. It can be taken again by `on_step`.
        self._denoising = RLock()
        self._decoders = Decoders(self.checkpoint, config, mesh)
        self._encoders = self._load_encoders()
        self._scheduler = self._choose_scheduler()
        loaded = [load_expert(self.checkpoint, config, mesh, name) for name in self._family.transformers]
        self.loras: list[AppliedLora] = [lora for _, loras in loaded for lora in loras]
        boundary = self.checkpoint.info.boundary_ratio
        self._experts = Experts(
            [expert for expert, _ in loaded],
            boundary=None if boundary is None else boundary * self._scheduler.config.num_train_timesteps,
            device=mesh.device if config.model.offload_experts else None,
        )
        self.load_seconds = time.monotonic() - start
        for line in self._loading_notes() if self._progress != "none" else ():
            say(line)
        self.s2_scales: list[tuple[int, list[float]]] = []
        mesh.watch.rest()

    def _load_encoders(self) -> Encoders:
        """Load what encodes prompts and images. Their VAE is that of a decoder, which all ranks make together."""
        vae = self._decoders.of(self.latent_shape).vae
        return Encoders(self.checkpoint, self.config.model, self.mesh, vae)

    def _loading_notes(self) -> Iterator[str]:
        """Yield a line about each component whose files were converted, each LoRA, and compiled blocks."""
        for component, how in self.checkpoint.conversions.items():
            yield f"{component}: {how}"
        for lora in self.loras:
            yield lora.line()
        if self.config.model.compile == "blocks":
            yield "blocks are compiled in the first step, and once more when a size changes, which takes minutes"

    def with_config(self, config: RunConfig) -> "Engine":
        """Return the same models under other settings of everything except `model` and `parallel`; loads no weights.

        Raises:
            InputError: those two differ, or the checkpoint cannot serve the new settings.
        """
        for section in ("model", "parallel"):
            if getattr(config, section) != getattr(self.config, section):
                raise InputError(f"{section}: expected the settings that the models were loaded with; load them again")
        check_request(config, self.checkpoint.info, world_size=self.mesh.world.size)
        other = copy.copy(self)
        other.config = config
        if any(getattr(config.sampling, key) != getattr(self.config.sampling, key) for key in _OF_SCHEDULER):
            other._scheduler = other._choose_scheduler()
        return other

    def with_guidance(self, **changes: Any) -> "Engine":
        """Return the same models under other guidance settings, such as `s2_scale=0.5`. Raises InputError."""
        return self.with_config(self.config.patched({"guidance": changes}, "with_guidance"))

    @property
    def num_blocks(self) -> int:
        """Blocks of the transformer, or of each of the two."""
        return self._experts.num_blocks

    @property
    def attention_kernel(self) -> str:
        """The kernel with which video tokens attend to each other; the last bits depend on it."""
        dim = getattr(self._experts.config, "attention_head_dim", 0)
        backend = named_backend(self.config.model.attention_backend)
        return attention_kernel(backend, self.mesh.device, self._dtype, dim, self.mesh.sequence.ring)

    @property
    def latent_shape(self) -> LatentShape:
        sampling = self.config.sampling
        return self.checkpoint.info.latent_shape(
            num_frames=sampling.num_frames, height=sampling.height, width=sampling.width
        )

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative_prompt: str | None = None,
        mask_seed: int | None = None,
        images: Pictures | None = None,
        resume_point: ResumePoint | None = None,
        on_step: OnStep | None = None,
        around: Around | None = None,
    ) -> Tensor:
        """Denoise one latent for each (prompt, seed), as one batch: float32 [B, C, T, H, W], equal on all ranks.

        If the model makes sound, its latents are the last frames (see `decoding.sound`).

        Args:
            negative_prompt: None takes the config's.
            mask_seed: None takes `guidance.mask_seed`, or the seed. A batch shares its masks, so if its seeds differ,
                one of the two has to be set.
            images: first and last image of the videos, of any size, or what controls them; the same on all ranks.
            resume_point: makes the batch resumable.
            on_step: called after each step with (steps done, steps in all); returning False asks to stop.
            around: for measurements: called in place of the denoiser, with (denoiser, latents, timestep, step), on all
                ranks alike, it returns the step's prediction. Ranks do not compare it, and no sidecar records it.

        Raises:
            InputError: images or control that the checkpoint does not take, or images that are missing.
            StoppedError: on all ranks, at the end of a step, if one of them was asked to stop.
            AgreementError: before the first step, if ranks differ in anything that decides the result.
            NumericalError: NaN or infinity in the latents.
        """
        with self._denoising, self.mesh.watch.resting_after():
            return self._sample(prompts, seeds, negative_prompt, mask_seed, images, resume_point, on_step, around)

    def _sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompt: str | None,
        mask_seed: int | None,
        images: Pictures | None,
        resume_point: ResumePoint | None,
        on_step: OnStep | None,
        around: Around | None,
    ) -> Tensor:
        self.mesh.watch.meet()  # the main rank loads more than the others
        negative = self.config.negative_prompt if negative_prompt is None else negative_prompt
        masks = self.mask_schedule(seeds, mask_seed)
        batch = Batch(prompts, seeds, negative, masks.seed)
        if images is None and self.checkpoint.info.control_layers:
            images = Control()  # such a model is never without
        if images is not None:
            images = images.fitted(self.config.sampling.width, self.config.sampling.height)
        shape = self._denoised_shape(images)
        scheduler = self._timed_scheduler()
        statement = latents_statement(
            self.config,
            batch,
            images=images,
            loras=self.digests.loras,
            latent_shape=shape,
            scheduler=scheduler,
        )
        require_agreement(
            statement
            | rank_statement(
                self.config,
                self.digests.of_values(),
                self.checkpoint.settings_digests(),
                machine_settings(self.mesh.device, self.attention_kernel),
            )
            | {"resume": resume_point is not None and resume_point.resume, "conversions": self.checkpoint.conversions},
            self.mesh.world,
        )
        self._encoders.warn_of_cut_prompts(batch, self.config)
        check_images(
            self.checkpoint.info,
            image=isinstance(images, Images),
            last_image=isinstance(images, Images) and images.last is not None,
            control=isinstance(images, Control),
            num_frames=self.config.sampling.num_frames,
        )
        if isinstance(images, Control):
            self._encoders.say_notes(images)
        latents, first_step = self._noise(seeds, shape), 0
        if resume_point is not None:
            latents, first_step = resume_point.begin(statement, scheduler, latents)
        fixed, denoiser = self._denoiser(batch, masks, images, latents)
        if first_step and resume_point is not None:
            resume_point.restore(denoiser)
        else:
            latents = fixed.start(latents)
        latents = self._denoise(denoiser, latents, scheduler, first_step, resume_point, on_step, around, seeds)
        self.s2_scales = denoiser.s2_scales()
        return fixed.finish(latents)

    def _denoise(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        scheduler: Any,
        first_step: int,
        resume_point: ResumePoint | None,
        on_step: OnStep | None,
        around: Around | None,
        seeds: Sequence[int],
    ) -> Tensor:
        """Run the sampler's loop, and between its steps look at progress, requests to stop, and the resume point."""
        num_steps = len(scheduler.timesteps)

        def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
            self.mesh.watch.report("denoising", step + 1, num_steps)
            return around(denoiser, latents, timestep, step) if around else denoiser(latents, timestep, step)

        def step_done(done: int, total: int, latents: Tensor) -> None:
            progress(done, total)
            requested = self._termination.requested or (on_step is not None and on_step(done, total) is False)
            stops = any_rank(requested, self.mesh.world, self.mesh.device)
            if resume_point is not None:
                resume_point.step_done(done, total, latents, scheduler, denoiser, stops=stops)
            elif stops:
                raise StoppedError(f"stopped on request after step {done} of {total}")

        what = "denoising" if resume_point is None else f"denoising {resume_point.name}"
        progress = Progress(what, self._progress, first=first_step)
        with progress, torch.no_grad(), self._termination.deferred():
            noise = step_noise(scheduler, seeds)
            latents = sample(denoise, latents, scheduler, first_step=first_step, on_step=step_done, noise=noise)
        self.mesh.watch.report("denoised")  # what comes now is no step, and has no limit
        return latents

    def _denoiser(
        self, batch: Batch, masks: MaskSchedule, images: Pictures | None, latents: Tensor
    ) -> tuple[ImageConditioning, Denoiser]:
        """Encode prompts and images, and return what images fix, and the denoiser."""
        self.mesh.watch.report("encoding text")
        cond, uncond = self._encoders.text(batch, self.config, images)
        if images is not None:
            self.mesh.watch.report("encoding images")
        with self._decoders.lock:  # the VAE encodes them
            fixed = self._encoders.images(images, latents, self.config)
        return fixed, Denoiser(
            self._experts,
            self.mesh,
            self.config.guidance,
            dtype=torch.float32 if self._family.takes_float32 else self._dtype,
            masks=masks,
            cond=cond,
            uncond=uncond,
            images=fixed,
        )

    def decode(self, latents: Tensor, *, alone: bool = False) -> Generator[Tensor, None, None]:
        """Return the frames of one video on the main rank, from its latents: chunks of float32 [t, H, W, 3] in [0, 1].

        All ranks exhaust it together, and the others receive nothing; see `FrameDecoder`. If the main rank
        `can_decode_alone`, it can do so in any thread, while the others do something else. In a single process several
        videos can be decoded at once, in turns or in threads.
        """
        return self._decoders.frames(latents, self.latent_shape, alone=alone)

    def sound(self, latents: Tensor) -> Sound | None:
        """Return the sound of one video's latents, or None if the model makes none; main rank only."""
        return self._decoders.sound(latents)

    @property
    def can_decode_alone(self) -> bool:
        """Whether decoding needs no other rank."""
        return not self._decoders.of(self.latent_shape).needs_others

    def cut_prompts(self) -> list[dict[str, Any]]:
        """Return which prompts of the config are longer than the model reads; main rank only, none on others."""
        return self._encoders.cut_prompts(self.config)

    def mask_schedule(self, seeds: Sequence[int], mask_seed: int | None = None) -> MaskSchedule:
        """Return the masks that `sample` draws for a batch with these seeds. Raises InputError as `sample` does."""
        guidance = self.config.guidance
        if mask_seed is None:
            mask_seed = guidance.mask_seed
        if mask_seed is None and len(set(seeds)) != 1 and guidance.uses_s2:
            raise InputError("guidance.mask_seed: a batch with several seeds shares its masks; set one mask seed")
        scheduler = self._timed_scheduler()
        return guidance.mask_schedule(
            num_blocks=self.num_blocks,
            seed=seeds[0] if mask_seed is None else mask_seed,
            num_steps=len(scheduler.timesteps),
            levels=noise_levels(scheduler),
            restart=self._experts.second_from(scheduler.timesteps),
        )

    def passes(self, masks: MaskSchedule) -> tuple[StepPasses, ...]:
        """Return what each step computes and forecasts under these masks."""
        return step_passes(self.config.guidance, masks)

    def _choose_scheduler(self) -> Any:
        sampling = self.config.sampling
        own = load_scheduler(self.checkpoint, None if sampling.scheduler else sampling.flow_shift)
        return choose_scheduler(own, sampling)

    def _timed_scheduler(self) -> Any:
        """Return a scheduler before its first step; it keeps state from step to step, so each batch has its own."""
        scheduler = copy.deepcopy(self._scheduler)
        set_steps(scheduler, self.config.sampling, self._family.set_timesteps, self.mesh.device)
        scheduler.set_begin_index(0)
        return scheduler

    def _denoised_shape(self, images: Pictures | None) -> LatentShape:
        """Return the shape of the latents while they are denoised: each reference has a frame before the video's."""
        return replace(self.latent_shape, frames=self.latent_shape.frames + num_references(images))

    def _noise(self, seeds: Sequence[int], shape: LatentShape | None = None) -> Tensor:
        """Return noise [B, C, T, H, W], drawn whole on the CPU for each seed: no rank or device changes it.

        Args:
            shape: None means that of the video.
        """
        shape = shape or self.latent_shape
        info = self.checkpoint.info
        size = (1, info.latent_channels, shape.frames, shape.height, shape.width)
        noise = [self._family.noise(size, torch.Generator().manual_seed(seed), info) for seed in seeds]
        return torch.cat(noise).to(self.mesh.device)
