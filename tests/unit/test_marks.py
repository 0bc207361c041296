"""Tests of the marks that tell what a setting changes, and of the lists derived from them."""

import pytest
from pydantic import BaseModel

from s2video.config.fields import Changes
from s2video.config.marks import PIXELS, marked_settings, process_settings
from s2video.config.run import RunConfig
from s2video.engine.statement import rank_statement

SECTIONS = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
BASE = RunConfig().model_dump(mode="json")


def fields(model: type[BaseModel], prefix: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        marks = field.json_schema_extra
        found[f"{prefix}.{name}"] = marks.get("changes") if isinstance(marks, dict) else None
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{prefix}.{name}")
    return found


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_mark(section: str) -> None:
    model = SECTIONS[section]
    assert model is not None
    kinds = {"latents", "frames", "rounding", "nothing"}
    assert {key: mark for key, mark in fields(model, section).items() if mark not in kinds} == {}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("guidance.s2_scale", "latents"),
        ("sampling.width", "latents"),
        ("model.vae_dtype", "frames"),
        ("output.crf", "frames"),
        ("parallel.ring", "rounding"),
        ("guidance.share_prefix", "rounding"),
        ("output.path", "nothing"),
        ("parallel.timeout_seconds", "nothing"),
    ],
)
def test_a_list_holds_what_is_marked(key: str, kind: Changes) -> None:
    assert key in marked_settings(BASE, frozenset({kind}))
    assert (key in marked_settings(BASE, PIXELS)) == (kind in PIXELS)
    is_agreed = kind in ("frames", "rounding") and not key.startswith("output.")
    assert (key in rank_statement(RunConfig(), {}, {}, {})) == is_agreed


def test_a_newer_setting_counts_where_it_is_set() -> None:
    """So older records without it stay valid."""
    older = RunConfig().model_dump(mode="json")
    del older["parallel"]["decode"]
    assert marked_settings(older, PIXELS) == marked_settings(BASE, PIXELS)
    tiled = RunConfig().patched({"parallel.decode": "tiled"}).model_dump(mode="json")
    assert marked_settings(tiled, PIXELS) == marked_settings(BASE, PIXELS) | {"parallel.decode": "tiled"}


def test_shots_cannot_differ_in_what_a_process_has_once() -> None:
    assert process_settings() == {
        *("model.device", "parallel.backend", "parallel.timeout_seconds", "parallel.heartbeat_seconds")
    }
