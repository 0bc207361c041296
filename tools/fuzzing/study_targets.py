"""Boundaries of a study: its file, its manifest, tables of prompts and scores, and votes."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzzing.mutations import dumped, mutate_bytes, mutate_json
from fuzzing.trial import Target
from s2video.config.yaml_reader import parse_yaml
from s2video.study.clips import Clip, Study, Video, read_study, read_table
from s2video.study.design import read_design, read_manifest, write_manifest, write_run_file
from s2video.study.scores import read_scores
from s2video.study.votes import pairs_of, read_votes

STUDY_FILE = """model: {path: shapes-wan}
prompts: [a red circle, {prompt: a blue square, sampling.num_frames: 9}]
seeds: 2
settings: {cfg: {guidance.s2_scale: 0}, s2: , fast: {guidance: {reuse: fast, s2_scale: 1}}}
folder: out
"""
MANIFEST = {
    "study": 1,
    "settings": {"cfg": {"guidance.s2_scale": 0}, "s2": {}},
    "clips": [{"name": "001-1", "prompt": "a"}],
}
TABLE = b'video,prompt\na-0.mp4,"a wall, red"\nb-0,\xe7\x8c\xab\n'
SCORES = b"video,measure,value\ncfg/1.mp4,a,0.5\n/x/s2/1.mp4,a,-1e-3\n"
VBENCH = {"imaging_quality": [0.5, [{"video_path": "x/cfg/1.mp4", "video_results": 0.5}]], "b": [True, []]}


def study_file(data: bytes, folder: Path) -> Any:
    (folder / "s.yaml").write_bytes(data)
    design = read_design(folder / "s.yaml")
    if design.num_videos <= 1000:
        write_run_file(design, folder / "run")
        write_manifest(replace(design, folder=folder / "run"))
        read_manifest(folder / "run")
    return design


def manifest(data: bytes, folder: Path) -> Any:
    (folder / "study.json").write_bytes(data)
    for setting in ("cfg", "s2"):
        (folder / setting).mkdir()
        (folder / setting / "001-1.mp4").write_bytes(b"no video")
    return read_study(folder)


def table(data: bytes, folder: Path) -> Any:
    (folder / "p.csv").write_bytes(data)
    return read_table(folder / "p.csv")


def scores(suffix: str) -> Any:
    def run(data: bytes, folder: Path) -> Any:
        (folder / f"s{suffix}").write_bytes(data)
        return read_scores(folder / f"s{suffix}", _study(folder))

    return run


def votes(data: bytes, folder: Path) -> Any:
    (folder / "v.json").write_bytes(data)
    return read_votes([folder / "v.json"], _study(folder))


def _study(folder: Path) -> Study:
    """One clip under two settings; the content of its files is always the same."""
    places = {setting: folder / setting / "1.mp4" for setting in ("cfg", "s2")}
    for setting, place in places.items():
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(setting.encode())
    clip = Clip("1", "a red circle", {setting: Video(place, None) for setting, place in places.items()})
    return Study("study", ("cfg", "s2"), (clip,), {})


def study_targets() -> list[Target]:
    with tempfile.TemporaryDirectory() as folder:
        (pair,) = pairs_of(_study(Path(folder)))
    ballot = {"voter": "Ann", "votes": [{"pair": pair.key, "clip": "1", "choice": "left", "blind": True}]}
    text = STUDY_FILE.encode()
    return [
        Target("study file", (text,), study_file, mutate_bytes, 15),
        Target(
            "study file values", (json.dumps(parse_yaml(STUDY_FILE, "seed")).encode(),), study_file, mutate_json, 15
        ),
        Target("study manifest", (dumped(MANIFEST),), manifest, mutate_json, 3),
        Target("prompts of videos", (TABLE,), table, mutate_bytes),
        Target("scores", (SCORES,), scores(".csv"), mutate_bytes),
        Target("scores of VBench", (dumped(VBENCH),), scores(".json"), mutate_json),
        Target("votes", (dumped(ballot),), votes, mutate_json, 3),
    ]
