"""One job: a prompt becomes a video.

    config + prompt -> text embeddings and seeded noise -> each step: masks, predictions, guided prediction, scheduler
    step -> latents (saved) -> frames -> MP4 -> sidecar

Only the closure made by `_denoiser` joins guidance to sampling. Every rank runs this file; files are written by the
main rank.
"""

import copy
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoints
from .config import RunConfig, build_config
from .ending import Termination
from .errors import InputError, StoppedError
from .files import write_json
from .forward import predict
from .geometry import LatentShape
from .guidance import combine, needs_uncond
from .job import Job
from .masks import step_masks
from .models import loading
from .models.base import Conditioning
from .models.decoder import FrameDecoder
from .models.parts import place_transformer
from .models.text import TextEncoder
from .parallel.agreement import require_agreement
from .parallel.collectives import any_rank, gather_objects
from .parallel.mesh import Mesh, resolve_device
from .progress import Progress, Style
from .requests import check_request, read_checkpoint
from .sampler import Denoise, sample
from .sidecar import container_metadata, is_sidecar_of, job_facts, make_sidecar, save_latents, versions
from .video import VideoSpec
from .video_queue import write_video_meanwhile


class Engine:
    """The models of one config, on this rank, ready for jobs.

    All ranks of the mesh construct it and call its methods together.

    Args:
        config: the run. Its prompt, seed and output are only defaults for callers; jobs bring their own.
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
        self.folder = loading.find_checkpoint(config.model.path, config.model.revision)
        loading.check_checkpoint(self.folder)
        self._family = loading.read_family(self.folder)
        checkpoint = read_checkpoint(self.folder)
        check_request(config, checkpoint, world_size=mesh.world.size)
        self.latent_shape = LatentShape.from_pixels(
            num_frames=config.sampling.num_frames,
            height=config.sampling.height,
            width=config.sampling.width,
            temporal_factor=checkpoint.temporal_factor,
            spatial_factor=checkpoint.spatial_factor,
        )
        self._latent_channels = checkpoint.latent_channels
        self._progress: Style = progress if mesh.is_main else "none"
        self._termination = termination or Termination()
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._fingerprint = loading.fingerprint(self.folder)
        self._digests: Future[dict[str, str]] | None = None
        text_components = None
        if mesh.is_main:
            # gigabytes to hash, while the ranks compute; the result is wanted only for the sidecar
            self._digests = ThreadPoolExecutor(1).submit(loading.weight_digests, self.folder)
            text_components = loading.load_text(self.folder, getattr(torch, config.model.text_encoder_dtype))
        self._decoder = FrameDecoder(
            config.parallel.decode,
            mesh,
            self.latent_shape,
            vae_class=checkpoint.vae_class,
            load_vae=lambda: loading.load_vae(self.folder, getattr(torch, config.model.vae_dtype), mesh.device),
            timeout_seconds=config.parallel.timeout_seconds,
        )
        self._encode_text = TextEncoder(
            self._family,
            text_components,
            mesh,
            max_sequence_length=config.sampling.max_sequence_length,
            dtype=self._dtype,
            offload=config.model.offload_text_encoder,
            stream=config.model.stream_text_encoder,
        )
        transformer, self._weights = place_transformer(
            self.folder, self._dtype, mesh, config.parallel, self._family.block_lists
        )
        self.model = self._family.block_model(transformer, config.model.attention_backend)
        self._scheduler = loading.load_scheduler(self.folder, config.sampling.flow_shift)
        self._load_seconds = time.monotonic() - start

    def with_guidance(self, **changes: Any) -> "Engine":
        """The same models under other guidance settings, such as `s2_scale=0.5`; costs nothing. Raises InputError."""
        values = self.config.model_dump(mode="json")
        values["guidance"] |= changes
        other = copy.copy(self)
        other.config = build_config(values, "with_guidance")
        return other

    def sample(
        self, prompts: Sequence[str], seeds: Sequence[int], *, negative_prompt: str = "", mask_seed: int | None = None
    ) -> Tensor:
        """Denoise one latent for each (prompt, seed), as one batch: float32 [B, C, T, H, W], equal on all ranks.

        Args:
            mask_seed: None takes `guidance.mask_seed`, or else the seed. A batch shares its masks, so where its seeds
                differ one of the two has to be set.

        Raises:
            StoppedError: on all ranks, at the end of a step, where one of them was asked to stop.
            AgreementError: before the first step, where ranks differ in anything that decides the result.
            NumericalError: NaN or infinity in the latents.
        """
        self.mesh.watch.meet()  # the main rank loads more than the others
        return self._sample(prompts, seeds, negative_prompt, mask_seed, None)

    def _sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompt: str,
        mask_seed: int | None,
        checkpoints: Checkpoints | None,
    ) -> Tensor:
        """`sample`, of a job that can be taken up again where there are checkpoints."""
        mask_seed = self._mask_seed(seeds, mask_seed)
        scheduler = copy.deepcopy(self._scheduler)  # it keeps state from step to step
        self._family.set_timesteps(scheduler, self.config.sampling.num_inference_steps, self.mesh.device)
        scheduler.set_begin_index(0)
        num_steps = len(scheduler.timesteps)
        statement = self._statement(prompts, seeds, negative_prompt, mask_seed, scheduler)
        require_agreement(statement | {"resume": checkpoints is not None and checkpoints.resume}, self.mesh.world)
        latents, first_step = self._noise(seeds), 0
        if checkpoints is not None:
            latents, first_step = checkpoints.begin(statement, scheduler, latents)
        self.mesh.watch.report("encoding text")
        denoise = self._denoiser(prompts, negative_prompt, mask_seed, num_steps)

        def denoise_in_sight(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
            self.mesh.watch.report("denoising", step + 1, num_steps)
            return denoise(latents, timestep, step)

        def on_step(done: int, total: int, latents: Tensor) -> None:
            progress(done, total)
            stops = any_rank(self._termination.requested, self.mesh.world, self.mesh.device)
            if checkpoints is not None:
                checkpoints.step_done(done, total, latents, scheduler, stops=stops)
            elif stops:
                raise StoppedError(f"stopped by SIGTERM after step {done} of {total}")

        progress = Progress("denoising", self._progress, first=first_step)
        with progress, torch.no_grad(), self._termination.deferred():
            return sample(denoise_in_sight, latents, scheduler, first_step=first_step, on_step=on_step)

    def decode(self, latents: Tensor) -> Generator[Tensor, None, None]:
        """Frames of one video [1, C, T, H, W], as chunks of float32 [t, H, W, 3] in [0, 1], on the main rank.

        All ranks exhaust it together, the others receiving nothing; see `FrameDecoder`.
        """
        return self._decoder(latents)

    def run(self, job: Job) -> Path | None:
        """Make the job's files: X.mp4, X.json and, if asked for, X.latents.safetensors.

        The latents are saved before decoding starts, and stay if it fails.

        Returns:
            The MP4's path on the main rank, None on the others.
        """
        facts = job_facts(
            self.config,
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            seed=job.seed,
            mask_seed=self._mask_seed([job.seed], None),
            num_blocks=self.model.num_blocks,
            num_steps=self.config.sampling.num_inference_steps,
        )
        self.mesh.watch.meet()  # the main rank loads more than the others, and decodes the video before this one
        if gather_objects(job.resume and self._is_made(job, facts), self.mesh.world)[0]:
            return job.output if self.mesh.is_main else None
        start = time.monotonic()
        checkpoints = Checkpoints(
            job.checkpoint_path,
            self.mesh,
            self._denoising_weights,
            every_seconds=self.config.checkpoint.every_seconds,
            resume=job.resume,
        )
        latents = self._sample([job.prompt], [job.seed], job.negative_prompt, None, checkpoints)
        timings = {"load_seconds": self._load_seconds, "denoise_seconds": time.monotonic() - start}
        self.mesh.watch.report("decoding")
        if not self.mesh.is_main:
            list(self.decode(latents))  # nothing: this rank helps
            return None
        save_latents(latents, job.latents_path, facts)
        start = time.monotonic()
        spec = VideoSpec(self.config.output.fps, self.config.output.crf)
        write_video_meanwhile(self.decode(latents), job.output, spec, metadata=container_metadata(facts))
        timings["decode_seconds"] = time.monotonic() - start
        sidecar = make_sidecar(
            facts,
            latents=latents,
            output=job.output,
            weights=self.weight_digests(),
            mesh=self.mesh.describe(),
            device=self.mesh.device,
            timings=timings,
            resumed_after_step=checkpoints.first_step or None,
        )
        write_json(job.sidecar_path, sidecar.as_json())
        if not job.keep_latents:
            job.latents_path.unlink()
        checkpoints.remove()
        return job.output

    def _is_made(self, job: Job, facts: dict[str, Any]) -> bool:
        """Whether the job's files are there, whole, and of this very job; the main rank knows."""
        files = [job.output, job.sidecar_path, *([job.latents_path] if job.keep_latents else [])]
        if not self.mesh.is_main or not all(file.is_file() for file in files):
            return False
        return is_sidecar_of(job.sidecar_path, facts | {"weights": self.weight_digests()})

    def weight_digests(self) -> dict[str, str]:
        """SHA-256 of the weight files. Main rank only."""
        assert self._digests is not None, "the main rank computes digests"
        return self._digests.result()

    def _denoising_weights(self) -> dict[str, str]:
        """Those digests that decide the latents. Main rank only."""
        return {name: digest for name, digest in self.weight_digests().items() if not name.startswith("vae/")}

    def _mask_seed(self, seeds: Sequence[int], mask_seed: int | None) -> int:
        if mask_seed is None:
            mask_seed = self.config.guidance.mask_seed
        if mask_seed is not None:
            return mask_seed
        if len(set(seeds)) != 1 and self.config.guidance.s2_scale:
            raise InputError("guidance.mask_seed: a batch with several seeds shares its masks; set one mask seed")
        return seeds[0]

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """Noise [B, C, T, H, W], drawn whole on the CPU for each seed: no rank or device changes it."""
        shape = self.latent_shape
        size = (1, self._latent_channels, shape.frames, shape.height, shape.width)
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(noise).to(self.mesh.device)

    def _denoiser(self, prompts: Sequence[str], negative_prompt: str, mask_seed: int, num_steps: int) -> Denoise:
        guidance = self.config.guidance
        spec = guidance.mask_spec()

        def told(texts: Sequence[str]) -> Conditioning:
            return replace(self._encode_text(texts), guidance=guidance.embedded_scale)

        cond = told(prompts)
        uncond = told([negative_prompt] * len(prompts)) if needs_uncond(guidance.cfg_scale) else None

        def denoise(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
            masks: tuple[tuple[int, ...], ...] = ()
            if guidance.s2_scale:
                masks = step_masks(
                    spec, num_blocks=self.model.num_blocks, seed=mask_seed, step=step, num_steps=num_steps
                )
            predictions = predict(
                self.model,
                latents.to(self._dtype),
                timestep.expand(latents.shape[0]),
                mesh=self.mesh,
                cond=cond,
                uncond=uncond,
                masks=masks,
                weights=self._weights,
                share_prefix=guidance.share_prefix,
                batch_branches=guidance.batch_branches,
            )
            return combine(
                predictions,
                cfg_scale=guidance.cfg_scale,
                s2_scale=guidance.s2_scale,
                form=guidance.form,
                rescale=guidance.rescale,
            )

        return denoise

    def _statement(
        self, prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str, mask_seed: int, scheduler: Any
    ) -> dict[str, Any]:
        """All that decides the latents, a field at a time, so that an error can name the one that differs."""
        settings = self.config.model_dump(mode="json", exclude={"prompt", "negative_prompt", "output"})
        statement = {
            f"{section}.{field}": value for section, fields in settings.items() for field, value in fields.items()
        }
        statement |= {
            "prompt": list(prompts),
            "negative_prompt": negative_prompt,
            "seed": list(seeds),
            "guidance.mask_seed": mask_seed,
            "weights": self._fingerprint,
            "latent_shape": [self.latent_shape.frames, self.latent_shape.height, self.latent_shape.width],
            # what diffusers adds for itself stands in the order of a set, which differs from process to process
            "scheduler": {key: value for key, value in scheduler.config.items() if not key.startswith("_")},
            "scheduler class": type(scheduler).__name__,
            "versions": versions(),
            # chooses kernels where the config names none, and kernels differ in the last bits
            "attention backend (DIFFUSERS_ATTN_BACKEND)": os.environ.get("DIFFUSERS_ATTN_BACKEND"),
        }
        for ignored in ("sampling.seed", "model.path", "model.offload_text_encoder", "model.stream_text_encoder"):
            statement.pop(ignored)
        return statement
