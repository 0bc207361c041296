"""Each kind of fault that fake tensors can show, put in on purpose, is found. docs/testing.md has the table."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from fake_cuda.cases import ALLOWED_SYNCS, ALLOWED_UPLOADS, guided_steps, planned, unexpected
from fake_cuda.device import fake_gpu
from fake_cuda.published import published_engine
from fake_cuda.ranks import fake_mesh
from fake_cuda.watchdog import Watchdog

from s2video.guidance import equations
from s2video.models.wan import blocks
from s2video.parallel import collectives, ring
from s2video.planning.memory import activation_bytes
from s2video.planning.step import Degrees
from s2video.sampling import sampler

Find = Callable[[Watchdog], object]
_KEPT: list[Any] = []


class Mutation(NamedTuple):
    """A fault: in the source of `function` of `owner`, `old` becomes `new`.

    Attributes:
        found: text that the error, or else a fault, sync or upload has.
    """

    owner: Any
    function: str
    old: str
    new: str
    found: str
    degrees: Degrees = Degrees(1, 1, 1)


MUTATIONS = {
    "a table on the CPU": Mutation(
        blocks,
        "rotate",
        "real, imaginary =",
        'cos = torch.zeros_like(cos, device="cpu"); real, imaginary =',
        "same device",
    ),
    "float32 in a product with bfloat16": Mutation(
        blocks.WanBlockModel, "run_block", "context.text,", "context.text.float(),", "bfloat16 and float32"
    ),
    "keys of another dtype in attention": Mutation(
        blocks.ShardedSelfAttention,
        "__call__",
        "rotate(query, rotary_emb), rotate(key, rotary_emb)",
        "rotate(query, rotary_emb), rotate(key, rotary_emb).float()",
        "float",
    ),
    "a number read in a block": Mutation(
        blocks.WanBlockModel,
        "run_block",
        "self._attention.begin(context.attention)",
        "self._attention.begin(context.attention); state.video[0, 0, 0].item()",
        "item() at wan/blocks.py:run_block",
    ),
    "a branch on a value": Mutation(
        blocks.WanBlockModel,
        "run_block",
        "self._attention.begin(context.attention)",
        "self._attention.begin(context.attention if state.video.isfinite().all() else None)",
        "item() at wan/blocks.py:run_block",
    ),
    "a copy to the CPU": Mutation(
        blocks.WanBlockModel,
        "run_block",
        "self._attention.begin(context.attention)",
        "self._attention.begin(context.attention); state.video[0].cpu()",
        "copy to the CPU at wan/blocks.py:run_block",
    ),
    "a size that depends on values": Mutation(
        blocks.WanBlockModel,
        "run_block",
        "self._attention.begin(context.attention)",
        "self._attention.begin(context.attention); (context.time > 0).nonzero()",
        "nonzero at wan/blocks.py:run_block",
    ),
    "an upload in a block": Mutation(
        blocks.WanBlockModel,
        "run_block",
        "self._attention.begin(context.attention)",
        "self._attention.begin(context.attention); torch.tensor([1.0, 2.0], device=state.video.device)",
        "wan/blocks.py:run_block",
    ),
    "rotary embedding in half precision": Mutation(
        blocks,
        "rotate",
        "real, imaginary =",
        "cos, sin = cos.to(x.dtype), sin.to(x.dtype); real, imaginary =",
        "rotate",
    ),
    "guidance in half precision": Mutation(equations, "combine", ".float()", "", "guidance/equations.py:combine"),
    "the scheduler in half precision": Mutation(
        sampler,
        "sample",
        "prediction, timestep, latents,",
        "prediction.half(), timestep, latents.half(),",
        "schedulers",
    ),
    "partial results merged in half precision": Mutation(
        ring,
        "merge_partial",
        "weight = torch.sigmoid(block_lse - lse)",
        "out, block_out, lse, block_lse = (x.bfloat16() for x in (out, block_out, lse, block_lse)); "
        "weight = torch.sigmoid(block_lse - lse)",
        "parallel/ring.py:merge_partial",
        Degrees(2, 1, 1),
    ),
    "a collective on the CPU": Mutation(
        collectives,
        "gather_tokens",
        "padded[:, : local.shape[1]] = local",
        "padded = padded.cpu()",
        "of a CPU tensor at parallel/collectives.py:gather_tokens",
        Degrees(1, 2, 1),
    ),
    "sizes of an all-to-all that do not add up": Mutation(
        collectives,
        "_all_to_all",
        "[x.numel() for x in parts]",
        "[x.numel() + 1 for x in parts]",
        "of other sizes at parallel/collectives.py:_all_to_all",
        Degrees(1, 2, 1),
    ),
}


@contextmanager
def put_in(mutation: Mutation) -> Iterator[None]:
    """Replace the function by one compiled from the changed source, also where other modules have imported it."""
    original = getattr(mutation.owner, mutation.function)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(mutation.old) >= 1, f"{mutation.function} has changed; adapt the mutation"
    made: dict[str, Any] = {}
    code = compile(source.replace(mutation.old, mutation.new), inspect.getsourcefile(original) or "", "exec")
    exec(code, original.__globals__, made)
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(("s2video", "fake_cuda"))]
    holders = [h for h in (mutation.owner, *modules) if getattr(h, mutation.function, None) is original]
    try:
        for holder in holders:
            setattr(holder, mutation.function, made[mutation.function])
        yield
    finally:
        for holder in holders:
            setattr(holder, mutation.function, original)


def look(degrees: Degrees) -> str:
    """Run a guided step, and return everything that is found: an error, faults, unexpected syncs and uploads."""
    given = {name: degree for name, degree in degrees._asdict().items() if degree > 1}
    name = "wan2.1-t2v-1.3b-480p"
    with fake_mesh(**given) as mesh, fake_gpu() as watchdog, published_engine(name, mesh) as engine:
        steps = guided_steps(engine, 1)
        watchdog.clear()
        errors = []
        try:
            steps()
        except (RuntimeError, ValueError, AssertionError) as error:
            errors.append(str(error))
        syncs, uploads = unexpected(watchdog.syncs, ALLOWED_SYNCS), unexpected(watchdog.uploads, ALLOWED_UPLOADS)
        return " ".join([*errors, *watchdog.faults, *syncs, *uploads])


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    with put_in(mutation):
        found = look(mutation.degrees)
    assert mutation.found in found, found


def test_nothing_is_found_without_a_fault() -> None:
    for degrees in {mutation.degrees for mutation in MUTATIONS.values()}:
        assert look(degrees) == ""


def test_a_state_that_is_kept_is_found() -> None:
    """More bytes than planned: here every block's output stays in memory."""
    run_block = blocks.WanBlockModel.run_block

    def keeping(self: Any, *args: Any) -> Any:
        _KEPT.append(run_block(self, *args))
        return _KEPT[-1]

    with (
        fake_mesh() as mesh,
        fake_gpu() as watchdog,
        published_engine("wan2.1-t2v-1.3b-480p", mesh, num_blocks=4) as engine,
        patch.object(blocks.WanBlockModel, "run_block", keeping),
    ):
        steps, before = guided_steps(engine, 1), watchdog.live
        watchdog.reset_peak()
        steps()
        expected = activation_bytes(Degrees(1, 1, 1), planned(engine, 1))
        assert watchdog.peak - before > 1.1 * expected
