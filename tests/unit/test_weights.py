"""Tests of fetched blocks: the order of fetches, streaming from CPU memory, reading in parts."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import counted_reads
from safetensors.torch import load_file, save_file
from tiny import NUM_BLOCKS, build_transformer, tiny_config
from torch import nn

from s2video.config.run import build_config
from s2video.config.sections import ParallelConfig
from s2video.errors import InputError
from s2video.models import parts
from s2video.models.base import Conditioning
from s2video.models.checkpoint import Checkpoint
from s2video.models.limits import check_request
from s2video.models.loading import load_transformer
from s2video.models.parts import place_transformer
from s2video.models.wan.blocks import WanBlockModel
from s2video.parallel.mesh import Axis, Mesh
from s2video.parallel.traffic import count_traffic
from s2video.parallel.watch import Watch
from s2video.parallel.weights import FetchedWeights, Handle, StreamedWeights
from s2video.sampling.forward import Lockstep, predict

BLOCKS = ("blocks",)

CPU = torch.device("cpu")
ALONE = Mesh(CPU)
STREAMED = ParallelConfig(weights="streamed")


class Journal(FetchedWeights):
    """Weights that log their calls in order."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self.events: list[str] = []

    def _fetch(self, index: int) -> Handle:
        self.events.append(f"fetch {index}")
        journal = self

        class Waiting:
            def wait(self) -> None:
                journal.events.append(f"wait {index}")

        return Waiting()

    def _free(self, index: int) -> None:
        self.events.append(f"free {index}")


def test_the_next_block_is_fetched_while_one_runs() -> None:
    weights = Journal(3)
    for index in range(3):
        with weights.block(index):
            weights.events.append(f"run {index}")
    assert weights.events == [
        *("fetch 0", "fetch 1", "wait 0", "run 0", "free 0"),
        *("fetch 2", "wait 1", "run 1", "free 1"),
        *("wait 2", "run 2", "free 2"),
    ]


def test_a_step_that_failed_leaves_nothing_behind() -> None:
    weights = Journal(4)
    with weights.block(0):
        pass
    with pytest.raises(RuntimeError), weights.block(1):
        raise RuntimeError
    weights.events.clear()
    with weights.block(0):
        pass
    assert weights.events == ["wait 2", "free 2", "fetch 0", "fetch 1", "wait 0", "free 0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_is_whole_to_the_bit(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    """Each block is fetched once per step for all branches; the second step equals the first."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 5, 10, 14, generator=generator).to(dtype)
    cond, uncond = (Conditioning(torch.randn(1, 8, 128, generator=generator).to(dtype)) for _ in range(2))
    whole = WanBlockModel(load_transformer(Checkpoint(tiny_checkpoint), dtype, CPU))
    transformer, weights = place_transformer(Checkpoint(tiny_checkpoint), dtype, ALONE, STREAMED)
    streamed = WanBlockModel(transformer)
    for masks in ([(2, 4)], [(1,), (5,)]):
        expected = predict(whole, latents, torch.tensor([500]), mesh=ALONE, cond=cond, uncond=uncond, masks=masks)
        with count_traffic() as traffic:
            got = predict(
                streamed,
                latents,
                torch.tensor([500]),
                mesh=ALONE,
                cond=cond,
                uncond=uncond,
                masks=masks,
                lockstep=Lockstep(weights),
            )
        for a, b in zip(
            (got.cond, got.uncond, *got.subs), (expected.cond, expected.uncond, *expected.subs), strict=True
        ):
            assert a is not None and b is not None and torch.equal(a, b)
        assert traffic.calls["weights"] == NUM_BLOCKS
        stored = sum(p.nbytes for p in whole.transformer.blocks.parameters())
        padding = 256 * sum(1 for _ in whole.transformer.blocks.parameters())
        assert stored <= traffic.sent["weights"] < stored + padding


def test_streaming_needs_two_blocks_of_memory(tiny_checkpoint: Path) -> None:
    transformer, _ = place_transformer(Checkpoint(tiny_checkpoint), torch.float32, ALONE, STREAMED)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in transformer.blocks.parameters()}
    one_block = sum(p.nbytes for p in transformer.blocks[0].parameters())
    assert len(storages) == 2 and sum(storages.values()) < 2.2 * one_block


def test_blocks_of_different_sizes_take_turns() -> None:
    """The buffers hold the largest; a block is copied in pieces, of which the last can have any length."""
    sizes = [(3, 5), (7, 2), (1, 1), (11, 13)]
    blocks = [nn.Linear(*size, device="meta") for size in sizes]
    values = [{name: torch.randn(p.shape) for name, p in block.named_parameters()} for block in blocks]
    weights = StreamedWeights(blocks, CPU, lambda block, name, a, b: values[block][name].flatten()[a:b])
    for index, block in enumerate(blocks):
        with weights.block(index):
            assert all(torch.equal(p, values[index][name]) for name, p in block.named_parameters())


def test_pieces_of_a_block_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2video.parallel.weights.PIECE", 1000)
    test_blocks_of_different_sizes_take_turns()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("several_files", [False, True])
def test_what_is_read_is_what_diffusers_loads(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, several_files: bool
) -> None:
    """Every tensor is read once, with its dtype, from one file or many; the rotary tables are in no file."""
    folder = tiny_checkpoint
    if several_files:
        folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))
        shutil.rmtree(folder / "transformer")
        build_transformer().save_pretrained(folder / "transformer", max_shard_size="200KB")
        assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    expected = load_transformer(Checkpoint(folder), dtype, CPU)
    with counted_reads() as read:
        model, weights = place_transformer(Checkpoint(folder), dtype, ALONE, STREAMED)
    assert read == {name: 4 * p.numel() for name, p in expected.named_parameters()}
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {**model.config, "_name_or_path": ""} == {**expected.config, "_name_or_path": ""}
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in expected.named_buffers()]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), expected.buffers(), strict=True))
    for name, parameter in expected.named_parameters():
        if not name.startswith("blocks."):
            assert torch.equal(model.get_parameter(name), parameter)
            assert model.get_parameter(name).dtype == parameter.dtype
    for index, block in enumerate(model.blocks):
        with weights.block(index):
            for name, parameter in block.named_parameters():
                other = expected.blocks[index].get_parameter(name)
                assert parameter.dtype == other.dtype and torch.equal(parameter, other)


@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_a_single_rank_shares_with_nobody(tiny_checkpoint: Path, kind: Any) -> None:
    model, weights = place_transformer(Checkpoint(tiny_checkpoint), torch.float32, ALONE, ParallelConfig(weights=kind))
    with weights.block(0):
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build_transformer().parameters())


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_files_that_do_not_fit_the_model_are_refused(tiny_checkpoint: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "wan"))
    file = next((folder / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    name = "blocks.3.attn1.to_q.weight"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(60, 59)
    save_file(tensors, file)
    said = {"missing": rf"1 missing \({name}\)", "misshapen": rf"{name} \[60, 59\] instead of \[60, 60\]"}[damage]
    with pytest.raises(InputError, match=said):
        place_transformer(Checkpoint(folder), torch.float32, ALONE, STREAMED)


def test_zero3_without_deepspeed_says_what_to_install(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    values = tiny_config(tiny_checkpoint).model_dump(mode="json")
    values["parallel"]["weights"] = "zero3"
    with pytest.raises(InputError, match=r"pip install 's2video\[deepspeed\]', or choose fsdp"):
        check_request(build_config(values), Checkpoint(tiny_checkpoint).info, world_size=2)


def test_ranks_meet_before_they_make_a_group(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 reads the encoders first, maybe for longer than `timeout_seconds`, which limits the making of a group."""
    events: list[str] = []

    class Watching(Watch):
        def meet(self, within: float | None = None) -> bool:
            events.append("meet")
            return True

    class MadeGroupError(Exception):
        pass

    def make(axis: Axis, timeout_seconds: float) -> Axis:
        events.append("group")
        raise MadeGroupError

    monkeypatch.setattr(parts, "in_own_group", make)
    mesh = Mesh(CPU, world=Axis("world", 2), watch=Watching())
    with pytest.raises(MadeGroupError):
        place_transformer(Checkpoint(tiny_checkpoint), torch.float32, mesh, ParallelConfig(weights="fsdp"))
    assert events == ["meet", "group"]
