"""Tests of compiled blocks: the same latents, one graph for each kind of block and size, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_graphs import counted_graphs
from families import FAMILIES
from safetensors.torch import save_file
from tiny import PROMPT, build_transformer, random_lora, tiny_config

from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models.checkpoint import open_checkpoint
from s2video.models.compiled import require_compiler
from s2video.models.limits import check_request
from s2video.planning.cards import CARDS
from s2video.planning.plan import make_plan

COMPILED = {"model.compile": "blocks"}


@pytest.mark.parametrize(
    ("name", "num_graphs"),
    [("wan", 1), ("wan-vace", 3), ("hunyuan-video-image", 3)],
)
def test_masks_branches_and_steps_compile_nothing(
    checkpoint_of: Callable[[str], Path], name: str, num_graphs: int
) -> None:
    """One graph for each kind of block, and one more for other lengths of text; a second video adds none."""
    family = FAMILIES[name]
    config = family.config(checkpoint_of(name), window=(0.3, 1.0), drop_count=2, num_draws=2)
    config = config.patched({"sampling.num_inference_steps": 3})
    plain = Engine(config, progress="none").sample([PROMPT], [3], images=family.images)
    with counted_graphs() as graphs:
        engine = Engine(config.patched(COMPILED), progress="none")
        assert torch.equal(engine.sample([PROMPT], [3], images=family.images), plain)
        assert len(graphs) == num_graphs
        other = engine.with_guidance(num_draws=1, window=(0.0, 0.5), cfg_scale=1.0)
        for again in (engine, other):
            again.sample([PROMPT], [3], mask_seed=8, images=family.images)
        assert len(graphs) == num_graphs


@pytest.mark.parametrize("kind", ["batched", "streamed", "lora"])
def test_with_other_settings(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    """Branches in one batch have two sizes, and the second graph serves all but the first."""
    guidance: dict[str, Any] = {"batch_branches": True, "num_draws": 2} if kind == "batched" else {}
    loras = []
    if kind == "lora":
        save_file(random_lora(build_transformer()), tmp_path / "lora.safetensors")
        loras = [{"path": str(tmp_path / "lora.safetensors")}]
    config = tiny_config(tiny_checkpoint, lora=loras, window=(0.3, 1.0), **guidance)
    config = config.patched({"sampling.num_inference_steps": 3})
    if kind == "streamed":
        config = config.patched({"parallel.weights": "streamed"})
    plain = Engine(config, progress="none").sample([PROMPT], [3])
    with counted_graphs() as graphs:
        assert torch.equal(Engine(config.patched(COMPILED), progress="none").sample([PROMPT], [3]), plain)
        assert len(graphs) == 1 + (kind == "batched")


def test_torch_s_own_compiler(tiny_checkpoint: Path) -> None:
    """Inductor's code, which takes other roundings."""
    config = tiny_config(tiny_checkpoint, window=(0.3, 1.0)).patched({"sampling.num_inference_steps": 2})
    plain = Engine(config, progress="none").sample([PROMPT], [3])
    torch._dynamo.reset()
    got = Engine(config.patched(COMPILED), progress="none").sample([PROMPT], [3])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(got, plain, atol=1e-4, rtol=0)
    torch._dynamo.reset()


def test_what_cannot_be_compiled_is_refused_first(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = open_checkpoint(str(tiny_checkpoint)).info
    with pytest.raises(InputError, match=r"zero3, because DeepSpeed .* set parallel\.weights to fsdp"):
        check_request(tiny_config(tiny_checkpoint).patched({**COMPILED, "parallel.weights": "zero3"}), info)
    monkeypatch.delenv("CXX", raising=False)
    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"expected (g\+\+|clang\+\+) in PATH"):
        patched.setattr("shutil.which", lambda name: "/usr/bin/c++" if name == "c++" else None)
        require_compiler("cpu")  # torch tries no other name
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"expected no-such-compiler in PATH, got none"):
        Engine(tiny_config(tiny_checkpoint).patched(COMPILED), progress="none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install triton"):
        require_compiler("cuda")


def test_a_line_says_so(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with counted_graphs():
        Engine(tiny_config(tiny_checkpoint).patched(COMPILED), progress="plain")
    assert "blocks are compiled in the first step" in capsys.readouterr().err


def test_a_plan_knows_it(tiny_checkpoint: Path) -> None:
    config = tiny_config(tiny_checkpoint).patched(COMPILED)
    assert "the time that model.compile saves is not part" in make_plan(config, 2, CARDS["cpu"]).note
    with pytest.raises(InputError, match="zero3, because DeepSpeed"):
        make_plan(config.patched({"parallel.weights": "zero3"}), 2, CARDS["cpu"])
