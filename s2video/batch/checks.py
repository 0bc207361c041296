"""Every job of a batch checked against its checkpoint and its output, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ..config.sections import ModelSource
from ..engine.space import check_space
from ..errors import InputError
from ..media.checks import check_output, check_spec
from ..media.formats import VideoSpec
from ..media.output_paths import OutputPaths
from ..models.checkpoint import OpenModel
from ..models.control import read_pictures
from ..models.family import CheckpointInfo
from ..models.limits import check_inputs, check_request
from ..models.prompts import TextReader, cut_prompts, cut_warning, text_readers
from ..records.replacing import check_inputs_kept, inputs_of
from .run_file import BatchJob
from .state_file import recorded_run_file, state_files


def find_problems(jobs: Sequence[BatchJob], open_model: OpenModel, *, world_size: int, images: bool) -> Iterator[str]:
    """Yield what prevents jobs, a sentence each, as far as it can be known before the models are loaded.

    Args:
        open_model: opens a checkpoint by its source, or returns the one that it opened before.
        images: read them, and control, too. Before a run they are not read: one that is missing can still appear, and
            if it does not, its job fails alone.
    """

    @cache
    def model(source: ModelSource) -> CheckpointInfo | str:
        try:
            return open_model(*source).info
        except InputError as error:
            return str(error)

    @cache
    def spec_problem(spec: VideoSpec, width: int, height: int) -> str | None:
        try:
            check_spec(spec, width, height)
        except InputError as error:
            return str(error)
        return None

    usable = []
    for job in jobs:
        config = job.config
        found = model(config.model.source)
        if isinstance(found, str):
            yield f"{job.where}: {found}"
            continue
        try:
            check_request(config, found, world_size=world_size)
            check_inputs(found, config)
            files = OutputPaths.of(config)
            check_output(files)
            check_inputs_kept(files.all, inputs_of(config))
            if images:
                read_pictures(config)
            sampling = config.sampling
            for spec in config.output.specs():
                if (problem := spec_problem(spec, sampling.width, sampling.height)) is not None:
                    yield f"{job.where}: {problem}"
            usable.append((config, found))
        except InputError as error:
            yield f"{job.where}: {error}"
    try:
        check_space(usable)
    except InputError as error:
        yield str(error)


def check_folder(folder: Path, shard: tuple[int, int] | None, run_file: Path) -> None:
    """Raise InputError if a batch's folder has the state of another one, whose videos would be made again or replaced.

    That is the batch of another run file that still exists, or one with another number of shards.
    """
    count = 1 if shard is None else shard[1]
    found = state_files(folder)
    for path, of in found.items():
        if (other := 1 if of is None else of[1]) != count:
            raise InputError(
                f"{folder}: expected {other} shards, because {path.name} is here, got {count}; use "
                f"{f'--shard I/{other}' if other > 1 else 'no --shard'}, or another folder"
            )
    for path in found:
        other_file = recorded_run_file(path)
        if other_file is not None and other_file.exists() and not other_file.samefile(run_file):
            raise InputError(
                f"{folder}: expected the run file {other_file}, whose videos are made here, got {run_file}; set "
                "another `folder` in one of them"
            )


def find_cut_prompts(jobs: Sequence[BatchJob], open_model: OpenModel) -> Iterator[str]:
    """Yield a sentence for each prompt that is longer than its model reads. Loads tokenizers, and no weights."""
    from ..models.loading import load_tokenizer

    @cache
    def readers(source: ModelSource) -> list[TextReader]:
        checkpoint = open_model(*source)
        names = [name for name in checkpoint.family.components if name.startswith("tokenizer")]
        return text_readers(checkpoint.family, {name: load_tokenizer(checkpoint, name) for name in names})

    said = set()
    for job in jobs:
        for cut in cut_prompts(job.config, readers(job.config.model.source)):
            sentence = f"{job.where}: {cut_warning(cut)}"
            if sentence not in said:
                said.add(sentence)
                yield sentence
