"""The pipelines that `enable` knows, as a matrix: Eq. 4 to the bit against shortened copies, and complete restoration.

Each row is a pipeline of diffusers in miniature (`tests/tiny_matrix.py`). `tools/plugin_table.py` makes the tables in
docs/plugin.md and docs/models.md from the same rows.
"""

import copy
import functools
from typing import Any

import pytest
import torch
from plugin_table import GUIDERS, MODELS, ROOT, TABLES
from tiny_guided import GUIDED
from tiny_matrix import MINIATURES, Miniature
from torch import Tensor, nn

import s2video
from s2video.integrations.control import Control
from s2video.integrations.kinds import known_pipelines

SCALE = 0.4
DROPPED = (2, 4)
SETTINGS = {"s2_scale": SCALE, "drop_count": 2, "never_drop": (0, 1, 3, 5), "window": (0, 1)}


@pytest.fixture(params=MINIATURES)
def row(request: pytest.FixtureRequest) -> Miniature:
    return MINIATURES[request.param]


def run(row: Miniature, **changes: Any) -> tuple[Tensor, ...]:
    """Run one step. Return latents, of all modalities."""
    pipe, arguments = row.built()
    form = {} if "output" in arguments else {"output_type": "latent", "return_dict": False}
    number = {} if row.steps is None else {"num_inference_steps": row.steps}
    made = pipe(**{**number, **form, **arguments, **changes}, generator=torch.Generator().manual_seed(7))
    return tuple(torch.stack(part) if isinstance(part, list) else part for part in _values(made) if part is not None)


def _values(made: Any) -> list[Any]:
    return list(made.values()) if isinstance(made, dict) else list(made)


class Steps:
    """What all copies of the pipeline's scheduler are given, and in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
        self.given: list[Tensor] = []
        kind = type(pipe.scheduler)
        step = kind.step

        def recorded(scheduler: Any, model_output: Tensor, *arguments: Any, **keywords: Any) -> Any:
            self.given.append(model_output.clone())
            return step(scheduler, model_output, *arguments, **keywords)

        monkeypatch.setattr(kind, "step", recorded)

    def take(self) -> list[Tensor]:
        given, self.given = self.given, []
        return given


class Skipped(nn.Module):
    """A block that returns its state as it is."""

    def __init__(self, block: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.parameters_of = names, list(type(block).forward.__code__.co_varnames)[1:]

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        named = {**dict(zip(self.parameters_of, arguments, strict=False)), **keywords}
        state = tuple(named[name] for name in self.names)
        return state if len(state) > 1 else state[0]


def without_blocks(row: Miniature, transformer: nn.Module) -> nn.Module:
    """Return a copy in which the dropped blocks do nothing."""
    shortened = copy.deepcopy(transformer)
    first = 0
    for name, returned in row.returns.items():
        blocks = getattr(shortened, name)
        for index in range(len(blocks)):
            if first + index in DROPPED:
                blocks[index] = Skipped(blocks[index], returned)
        first += len(blocks)
    return shortened


def parts(output: Any) -> tuple[Tensor, ...]:
    """Return what a transformer predicts: one tensor, or one for each modality."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(torch.stack(part) if isinstance(part, list) else part for part in _values(output))


def like(output: Any, values: tuple[Tensor, ...]) -> Any:
    if isinstance(output, Tensor):
        return values[0]
    values = tuple(
        list(value) if isinstance(own, list) else value for value, own in zip(values, _values(output), strict=True)
    )
    return type(output)(**dict(zip(output, values, strict=True))) if isinstance(output, dict) else values


class Reference:
    """Eq. 4 without the plugin: sub comes from a copy with fewer blocks, for the calls of the first step."""

    def __init__(self, row: Miniature, steps: Steps) -> None:
        self.steps = steps
        self.transformer = row.built()[0].transformer
        self.shortened, self.half = without_blocks(row, self.transformer), row.half
        self.deviation: tuple[Tensor, ...] = ()  # ω(sub − cond), of each modality
        self.num_calls = 0

    def __enter__(self) -> "Reference":
        forward = self.transformer.forward

        @functools.wraps(forward)
        def moved(*arguments: Any, **keywords: Any) -> Any:
            output = forward(*arguments, **keywords)
            if self.steps.given:
                return output
            if not self.num_calls:
                subs = parts(self.shortened(*arguments, **keywords))
                self.deviation = tuple(map(self._deviation, subs, parts(output)))
            self.num_calls += 1
            return like(output, tuple(map(self._minus, parts(output), self.deviation)))

        self.transformer.forward = moved
        return self

    def __exit__(self, *error: object) -> None:
        del self.transformer.forward

    def _deviation(self, sub: Tensor, cond: Tensor) -> Tensor:
        if self.half is not None:
            sub, cond = sub.chunk(2)[self.half], cond.chunk(2)[self.half]
        return SCALE * (sub - cond)

    def _minus(self, prediction: Tensor, deviation: Tensor) -> Tensor:
        return prediction - deviation.repeat(len(prediction) // len(deviation), *(1,) * (deviation.ndim - 1))


def test_one_step_is_equation_4(row: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler gets CFG − ω(sub − cond), to the bit, and nothing is left after `disable`."""
    pipe, _ = row.built()
    steps = Steps(monkeypatch, pipe)
    untouched, plain, before = run(row), steps.take(), state_of(pipe, row)
    with Reference(row, steps) as reference:
        run(row)
    moved = steps.take()
    assert all(deviation.any() for deviation in reference.deviation)
    expected = moved if row.is_moved else [plain[0] - reference.deviation[0]]

    s2video.enable(pipe, **SETTINGS)
    try:
        made, got = run(row), steps.take()
    finally:
        s2video.disable(pipe)
    first = len(plain) // row.num_steps
    assert len(got) == len(plain) and all(map(torch.equal, got[:first], expected[:first]))
    assert any(not torch.equal(one, other) for one, other in zip(made, untouched, strict=True))
    assert state_of(pipe, row) == before
    assert all(map(torch.equal, run(row), untouched))


def test_all_pipelines_are_here() -> None:
    assert MINIATURES.keys() == known_pipelines().keys()
    for name, kind in known_pipelines().items():
        row = MINIATURES[name]
        assert (kind.place == "calls", kind.one_call) == (row.is_moved, row.half is not None), name


def test_the_tables_are_current() -> None:
    """To update: python tools/plugin_table.py."""
    assert {name for names in MODELS.values() for name in names} == MINIATURES.keys()
    assert {"MotifVideoPipeline", *GUIDED} <= {name for names in GUIDERS.values() for name in names}
    for path, table in TABLES:
        assert table() in path.read_text(encoding="utf-8"), path
    assert f"with {len(MINIATURES)} pipelines" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_cond_is_found_as_the_table_says(row: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: set[str | None] = set()
    call = Control.call

    def recorded(control: Control, *arguments: Any) -> Any:
        contexts.add("every" if control.kind.all_cond else control.context)
        return call(control, *arguments)

    monkeypatch.setattr(Control, "call", recorded)
    s2video.enable(row.built()[0], **SETTINGS)
    run(row)
    s2video.disable(row.built()[0])
    names = {"cond": "name", "pred_cond": "name", "cond_uncond": "halves", None: "embeddings", "every": "every"}
    assert {names[context] for context in contexts if context in names} == {row.found}


@pytest.mark.parametrize("name", [name for name, row in MINIATURES.items() if row.is_moved and row.plain is not None])
def test_what_s2_adds_is_the_same_with_and_without_cfg(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where S² moves predictions, their combination moves by as much: D = CFG − ω(sub − cond)."""
    row = MINIATURES[name]
    pipe, _ = row.built()
    steps, added = Steps(monkeypatch, pipe), []
    for changes in ({}, row.plain):
        run(row, **changes)
        plain = steps.take()
        s2video.enable(pipe, **SETTINGS)
        run(row, **changes)
        s2video.disable(pipe)
        added.append([one - other for one, other in zip(steps.take(), plain, strict=True)])
    for one, other in zip(*added, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    assert any(one.any() for one in added[0])


def state_of(pipe: Any, row: Miniature) -> tuple[Any, ...]:
    transformer = pipe.transformer
    return (
        type(pipe),
        sorted(pipe.__dict__),
        type(transformer),
        [
            (type(getattr(transformer, name)), [id(block) for block in getattr(transformer, name)])
            for name in row.returns
        ],
        [name for name in transformer.__dict__ if "s2video" in name],
        sorted(pipe.scheduler.__dict__),
        [name for name, _ in transformer.named_modules()],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in transformer.modules()),
    )
