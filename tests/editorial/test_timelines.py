"""Timelines: a batch's cut for an editor, and an editor's cut as a batch."""

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import opentimelineio as otio
import pytest
import yaml
from editing import EditRun

from s2video.batch.store import Entry, Store
from s2video.cli.main import main
from s2video.config.run import RunConfig
from s2video.editorial.build import new_timeline
from s2video.editorial.cut import CutShot, Media
from s2video.editorial.edl import write_edl
from s2video.editorial.fcp_xml import write_xml
from s2video.editorial.otio import exact_rate, frames_of, label
from s2video.editorial.read import Timeline, read_timeline
from s2video.editorial.shots import KEPT, possible_frames, prompt_of, shots_in
from s2video.errors import InputError
from s2video.media.timecode import Timecode
from s2video.models.checkpoint import open_checkpoint
from s2video.models.family import CheckpointInfo

FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
RATES = [
    (Fraction(24), "01:00:00:00"),
    (Fraction(25), "10:00:00:00"),
    (FILM, "01:00:00:00"),
    (NTSC, "00:59:59;28"),  # over the minute in which two labels are dropped
    (NTSC, "00:59:59:28"),
    (Fraction(60000, 1001), "01:00:59;58"),
]

Event = tuple[str, str, str, str, str]  # name, source in and out, record in and out


def events(timeline: Timeline) -> list[Event]:
    """What an editor sees of the first video track."""
    fps, track = timeline.fps, timeline.otio.video_tracks()[0]
    at = Timecode.parse(timeline.start, fps).count
    found = []
    for child in track:
        length = frames_of(child.duration(), fps)
        if isinstance(child, otio.schema.Clip):
            source = frames_of(child.trimmed_range().start_time, fps)
            times = (source, source + length, at, at + length)
            found.append((child.name, *(label(time, fps, drop=timeline.drop) for time in times)))
        at += length
    return found


def shot(name: str, fps: Fraction, timecode: str | None, *, frames: int = 49, **facts: Any) -> CutShot:
    start = 0 if timecode is None else Timecode.parse(timecode, fps).count
    media = Media(
        Path(f"/media/{name}.mov"), fps, 1280, 720, frames, start, timecode, None, False, {"shot": name, **facts}
    )
    return CutShot(name, media, "", frames, fps)


def cut(fps: Fraction, start: str, *, handles: int = 8) -> Timeline:
    drop = ";" in start
    zero = "01:00:00;00" if drop else "01:00:00:00"
    shots = [
        shot("sh010, the long one", fps, zero, prompt='a "red" wall <x> & a door', seed=7),
        CutShot("sh020", None, "failed", 33, fps),
        shot("sh030", fps, start, frames=81, prompt="b"),
        shot("sh010, the long two", fps, zero, prompt="c"),
    ]
    first = Timecode.parse(start, fps).count
    return Timeline(new_timeline(shots, title="my cut", start=first, handles=handles), fps, drop)


def as_text(timeline: Timeline, suffix: str) -> str:
    if suffix == ".otio":
        timeline.otio.metadata["s2video"] = {"drop": timeline.drop}
        return str(timeline.otio.to_json_string())
    if suffix == ".edl":
        return write_edl(timeline.otio, timeline.fps, drop=timeline.drop)
    return write_xml(timeline.otio, timeline.fps, drop=timeline.drop, size=(1280, 720), sound=False)


@pytest.mark.parametrize("suffix", [".otio", ".edl", ".xml"])
@pytest.mark.parametrize(("fps", "start"), RATES)
def test_rates_timecodes_names_and_handles_are_read_back(
    fps: Fraction, start: str, suffix: str, tmp_path: Path
) -> None:
    written = cut(fps, start)
    path = tmp_path / f"cut{suffix}"
    path.write_text(as_text(written, suffix), encoding="utf-8")
    found = read_timeline(path, fps if suffix == ".edl" else None)
    assert (found.fps, found.drop, found.start) == (fps, ";" in start, start)
    assert events(found) == events(written)
    first, second, _ = events(found)
    assert (first[0], first[3]) == ("sh010, the long one", start)
    assert second[1] == label(Timecode.parse(start, fps).count + 8, fps, drop=written.drop)  # after its handle
    clips = list(found.otio.find_clips())
    assert prompt_of(clips[0]) == 'a "red" wall <x> & a door'
    if suffix != ".edl":
        assert [frames_of(clip.media_reference.available_range.duration, fps) for clip in clips] == [49, 81, 49]
        assert clips[0].metadata["s2video"]["seed"] == 7 and clips[0].media_reference.target_url.startswith("file:///")
    gaps = [child for child in found.otio.video_tracks()[0] if isinstance(child, otio.schema.Gap)]
    assert [frames_of(gap.duration(), fps) for gap in gaps] == [17]


def test_an_edl_is_one_that_any_program_reads() -> None:
    text = as_text(cut(NTSC, "00:59:59;28"), ".edl")
    lines = text.splitlines()
    assert lines[:2] == ["TITLE: my cut", "FCM: DROP FRAME"]
    assert lines[3] == "001  SH010THE V     C        01:00:00;08 01:00:01;11 00:59:59;28 01:00:01;01"
    assert lines[4:8] == [
        "* FROM CLIP NAME: sh010, the long one",
        "* SOURCE FILE: sh010, the long one.mov",
        '* PROMPT: a "red" wall <x> & a door',
        "* S2VIDEO: seed=7",
    ]
    reels = [line.split()[1] for line in lines if line[:3].isdigit()]
    assert reels == ["SH010THE", "SH030", "SH010TH2"]  # no two media share one
    assert "FCM: NON-DROP FRAME" in as_text(cut(NTSC, "00:59:59:28"), ".edl")


def test_xml_has_what_the_adapter_leaves_out() -> None:
    text = as_text(cut(NTSC, "00:59:59;28"), ".xml")
    assert "<string>00:59:59;28</string>" in text and "<string>01:00:00;00</string>" in text
    assert "NDF" not in text and "<displayformat>DF</displayformat>" in text
    assert "<width>1280</width>" in text and "<audio" not in text
    assert '<description>a "red" wall &lt;x&gt; &amp; a door</description>' in text
    timeline = cut(FILM, "01:00:00:00")
    clip = next(iter(timeline.otio.find_clips()))
    clip.markers.append(otio.schema.Marker("look", otio.opentime.TimeRange(clip.source_range.start_time)))
    clip.name = "a\x07bell"
    clip.metadata["s2video"]["settings"] = {"sampling.seed": 5, "output.also": ["{name}_2.mp4"]}
    assert "<name>a?bell</name>" in as_text(timeline, ".xml")
    assert '"settings": {"output.also": ["{name}_2.mp4"], "sampling.seed": 5}' in as_text(timeline, ".xml")  # as JSON
    assert "<in>8</in>" in as_text(timeline, ".xml").split("<name>look</name>")[1][:80]  # a frame of the medium


def test_sequences_are_named_as_editors_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "sh010 a%"
    folder.mkdir()
    (folder / "sh010 a%.1001.exr").touch()
    media = Media(folder, FILM, 64, 64, 49, 1001, None, 1001, False, {"shot": "sh010"})
    timeline = new_timeline([CutShot("sh010", media, "", 49, FILM)], title="x", start=86400, handles=8)
    (clip,) = otio.adapters.read_from_string(timeline.to_json_string(), "otio_json").find_clips()
    reference = clip.media_reference
    assert frames_of(clip.source_range.start_time, FILM) == 1009
    first = clip.source_range.start_time
    assert reference.target_url_for_image_number(0) == f"{folder.as_uri()}/sh010 a%.1001.exr"
    assert reference.frame_for_time(first) == 1009 and reference.number_of_images_in_sequence() == 49
    text = write_xml(timeline, FILM, drop=False, size=None, sound=False)
    assert f"<pathurl>{folder.as_uri()}/sh010 a%.[1001-1049].exr</pathurl>" in text
    assert "* SOURCE FILE: sh010 a%" in write_edl(timeline, FILM, drop=False)


@pytest.mark.parametrize(
    ("rate", "exact"), [(23.976, FILM), (23.98, FILM), (29.97, NTSC), (24.0, Fraction(24)), (12.5, Fraction(25, 2))]
)
def test_rates_are_exact(rate: float, exact: Fraction) -> None:
    assert exact_rate(rate) == exact
    assert frames_of(otio.opentime.RationalTime(86_400_000, rate), exact) == 86_400_000


# A batch's cut


def test_the_cut_of_a_batch_follows_order_versions_and_picks(
    edit_run: EditRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.otio"
    assert main(["timeline", str(edit_run.folder), "-o", str(path)]) == 0
    found = read_timeline(path)
    assert (found.fps, found.start) == (FILM, "01:00:00:00")
    assert events(found) == [
        ("sh010", "01:00:00:00", "01:00:00:05", "01:00:00:00", "01:00:00:05"),
        ("sh020", "01:00:00:00", "01:00:00:09", "01:00:00:05", "01:00:00:14"),
        ("sh030", "01:00:00:00", "01:00:00:05", "01:00:00:14", "01:00:00:19"),
    ]
    clip = list(found.otio.find_clips())[1]
    reference = clip.media_reference
    assert reference.target_url == (edit_run.folder / "sh020_v002_s0.mp4").resolve().as_uri()
    assert frames_of(reference.available_range.start_time, FILM) == 86400
    sidecar = json.loads((edit_run.folder / "sh020_v002_s0.json").read_text())
    facts = clip.metadata["s2video"]
    assert facts["prompt"] == "a blue wall, and a door"
    assert (facts["version"], facts["seed"], facts["s2_scale"]) == (2, 0, 0.5)
    assert (facts["sha256"], facts["latents_sha256"]) == (sidecar["output"]["sha256"], sidecar["latents"]["sha256"])
    assert main(["pick", str(edit_run.folder), "sh020_s0"]) == 0
    assert main(["pick", str(edit_run.folder), "sh030_s0", "--reject"]) == 0
    arguments = ["--handles", "1", "--start", "10:00:00:00", "--title", "second"]
    assert main(["timeline", str(edit_run.file), "-o", str(path), *arguments]) == 0  # its own file may be replaced
    assert "sh030: no take of it is usable (rejected); the timeline has a gap there" in capsys.readouterr().err
    found = read_timeline(path)
    assert found.otio.name == "second" and [event[1:] for event in events(found)] == [
        ("01:00:00:01", "01:00:00:04", "10:00:00:00", "10:00:00:03"),
        ("01:00:00:01", "01:00:00:08", "10:00:00:03", "10:00:00:10"),
    ]
    assert "sh020_s0.mp4" in list(found.otio.find_clips())[1].media_reference.target_url
    loud = path.with_suffix(".OTIO")
    assert (
        main(["timeline", str(edit_run.folder), "-o", str(loud)])
        == 0
        == main(["timeline", str(edit_run.folder), "-o", str(loud)])
    )
    assert read_timeline(loud).fps == FILM
    path.write_text(path.read_text().replace("second", "mine"))
    assert main(["timeline", str(edit_run.folder), "-o", str(path)]) == 2
    assert "expected no file, or an unchanged one of s2video" in capsys.readouterr().err


def test_a_moved_batch_is_found_where_it_is(edit_run: EditRun, tmp_path: Path) -> None:
    moved = edit_run.folder.rename(tmp_path / "moved, to here")
    assert main(["timeline", str(moved), "-o", str(tmp_path / "cut.xml")]) == 0
    clip = next(iter(read_timeline(tmp_path / "cut.xml").otio.find_clips()))
    assert clip.media_reference.target_url == (moved / "sh010_s0.mp4").resolve().as_uri()


@pytest.mark.parametrize("suffix", [".edl", ".xml"])
def test_rates_that_no_editor_has(suffix: str, edit_run: EditRun, capsys: pytest.CaptureFixture[str]) -> None:
    for path in edit_run.folder.glob("*.json"):
        values = json.loads(path.read_text())
        if "config" in values:
            values["config"]["output"]["fps"] = "16"
            path.write_text(json.dumps(values))
    output = edit_run.folder / f"cut{suffix}"
    assert main(["timeline", str(edit_run.folder), "-o", str(output)]) == 2
    assert "expected a frame rate with SMPTE timecode" in capsys.readouterr().err
    assert not output.exists()
    assert main(["timeline", str(edit_run.folder), "-o", str(output.with_suffix(".otio"))]) == 0


def test_batches_without_a_cut(edit_run: EditRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    store = Store(empty)
    store.create()
    config = RunConfig(prompt="a").model_dump_json()
    store.put([Entry("a.mp4", "here", "", config, "k", None)], frozenset())
    for arguments, message in [
        ([str(empty), "-o", "cut.otio"], "expected a batch with videos that are made, got none"),
        ([str(tmp_path), "-o", "cut.otio"], "expected the folder of a batch"),
        ([str(edit_run.folder), "-o", "cut.aaf"], "expected a name that ends in .otio, .edl, .xml, got 'cut.aaf'"),
        (
            [str(edit_run.folder), "-o", "cut.otio", "--handles", "3"],
            "expected less than half of each shot, got 3, and",
        ),
        ([str(edit_run.folder), "-o", "cut.otio", "--start", "1:00"], 'expected HH:MM:SS:FF, such as "01:00:00:00"'),
    ]:
        assert main(["timeline", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not Path("cut.otio").exists()


# An editor's cut


INFO = CheckpointInfo(num_blocks=2, patch_size=(1, 2, 2), max_positions=None, spatial_factor=8, temporal_factor=4)


@pytest.mark.parametrize(("frames", "possible"), [(1, 1), (2, 5), (5, 5), (6, 9), (81, 81), (82, 85)])
def test_lengths_that_a_model_can_make(frames: int, possible: int) -> None:
    assert possible_frames(frames, INFO) == possible


def editors_cut(fps: Fraction, *, drop: bool) -> Timeline:
    """Two shots with prompts around a filmed clip and a gap, a second track, and sound."""
    rate = float(fps)
    hour = Timecode.parse("01:00:00;00" if drop else "01:00:00:00", fps).count

    def span(start: int, length: int) -> Any:
        return otio.opentime.TimeRange(
            otio.opentime.RationalTime(start, rate), otio.opentime.RationalTime(length, rate)
        )

    timeline = otio.schema.Timeline("reel 1", global_start_time=otio.opentime.RationalTime(hour, rate))
    first, second, sound = (otio.schema.Track(name, kind="Video") for name in ("V1", "V2", "A1"))
    sound.kind = "Audio"
    red = otio.schema.Clip(
        "sh010.mov", source_range=span(hour + 100, 6), metadata={"s2video": {"prompt": "a red wall"}}
    )
    filmed = otio.schema.Clip("A001_C002", otio.schema.ExternalReference("file:///a.mov"), span(hour, 20))
    blue = otio.schema.Clip("sh020", source_range=span(hour + 50, 5))
    blue.markers.append(otio.schema.Marker("Prompt: a blue  wall", span(hour + 51, 1)))
    gap = otio.schema.Gap(source_range=span(0, 7))
    first.extend([red, gap, filmed, blue])
    green = otio.schema.Clip("sh010.mov", source_range=span(0, 4), metadata={"s2video": {"prompt": "a green wall"}})
    green.metadata["s2video"]["settings"] = {"sampling.seed": 5, "output.also": ["{name}_2.mp4"]}
    second.append(green)
    sound.append(otio.schema.Clip("music", source_range=span(0, 38)))
    timeline.tracks.extend([first, second, sound])
    return Timeline(timeline, fps, drop)


def settings_file(tmp_path: Path, checkpoint: Path, **values: Any) -> Path:
    path = tmp_path / "base.yaml"
    sampling = {"width": 32, "height": 32, "num_inference_steps": 1, "max_sequence_length": 16}
    model = {"path": str(checkpoint), "device": "cpu"}
    values = {"model": model, "sampling": sampling, "folder": str(tmp_path / "out"), **values}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def make(arguments: Sequence[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2video.cli.batch._is_rank", lambda: True)
        return main(["batch", *arguments, "--plain"])


def test_a_timeline_to_shots_to_a_timeline_is_the_same_cut(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = editors_cut(NTSC, drop=True)
    path, base = tmp_path / "cut.otio", settings_file(tmp_path, tiny_checkpoint)
    path.write_text(original.otio.to_json_string(), encoding="utf-8")
    assert make([str(base), "--timeline", str(path), "--handles", "2"]) == 0
    assert "left as they are, without a prompt: A001_C002" in capsys.readouterr().err
    jobs = {r.name: RunConfig.model_validate_json(r.config) for r in Store(tmp_path / "out").records()}
    assert {n: (c.prompt, c.sampling.num_frames, c.sampling.seed, c.output.timecode) for n, c in jobs.items()} == {
        "sh010_s0.mp4": ("a red wall", 13, 0, "01:00:03;08"),  # 6 and 2 x 2, rounded up; two frames before 100
        "sh020_s0.mp4": ("a blue wall", 9, 0, "01:00:01;18"),
        "sh010_2_s5.mp4": ("a green wall", 9, 5, None),  # nothing is two frames before 0
    }
    assert all(config.output.fps == NTSC for config in jobs.values())
    back = tmp_path / "back.otio"
    assert main(["timeline", str(tmp_path / "out"), "-o", str(back)]) == 0
    found = read_timeline(back)
    assert (found.start, found.drop, events(found)) == (original.start, True, events(original))
    assert [len(track) for track in found.otio.tracks] == [4, 1, 1]
    clips = {clip.name: clip for clip in found.otio.tracks[0].find_clips()}
    assert clips["sh010.mov"].media_reference.target_url.endswith("/out/sh010_s0.mp4")
    assert clips["A001_C002"].media_reference.target_url == "file:///a.mov"
    available = clips["sh010.mov"].media_reference.available_range
    assert label(frames_of(available.start_time, NTSC), NTSC, drop=True) == "01:00:03;08"
    (second,) = found.otio.tracks[1].find_clips()
    assert frames_of(second.source_range.start_time, NTSC) == 2  # its handle is in front
    assert second.metadata["s2video"]["settings"]["sampling.seed"] == 5
    assert main(["timeline", str(tmp_path / "out"), "-o", str(back), "--handles", "1"]) == 2
    assert "was made from a timeline, which has a start and handles of its own" in capsys.readouterr().err
    # another version of one of them, of the same timeline, or of one that was made from the first
    again = [str(base), "--timeline", str(back), "--handles", "2", "--version", "2", "--only", "sh020"]
    assert make(again) == 0
    assert main(["timeline", str(tmp_path / "out"), "-o", str(back)]) == 0
    found = read_timeline(back)
    assert events(found) == events(original)
    assert "sh020_v002_s0.mp4" in {c.name: c for c in found.otio.find_clips()}["sh020"].media_reference.target_url
    assert main(["timeline", str(tmp_path / "out"), "-o", str(tmp_path / "back.edl")]) == 2
    assert "EDL: expected one video track, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".edl", ".xml"])
def test_an_edl_and_an_xml_to_shots_and_back(suffix: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    original = cut(FILM, "01:00:00:00")
    path = tmp_path / f"cut{suffix}"
    path.write_text(as_text(original, suffix), encoding="utf-8")
    rate = ("output.fps=24000/1001",) if suffix == ".edl" else ()
    base = settings_file(tmp_path, tiny_checkpoint)
    found = shots_in(path, base, rate, handles=8, open_model=open_checkpoint)
    names = ["sh010, the long one", "sh030", "sh010, the long two"]
    assert [item["shot"] for item in found.shots] == names
    assert [item["sampling.num_frames"] for item in found.shots] == [49, 81, 49]  # as they were
    assert [item["prompt"] for item in found.shots] == ['a "red" wall <x> & a door', "b", "c"]
    assert found.shots[0]["output.timecode"] == "01:00:00:00"
    assert events(found.timeline) == events(original)


def test_a_timeline_alone_is_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.otio"
    path.write_text(editors_cut(FILM, drop=False).otio.to_json_string(), encoding="utf-8")
    arguments = ["--timeline", str(path), "--set", f"folder={tmp_path / 'out'}", "--set", "prompt=all of it"]
    assert main(["batch", *arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 videos, 4 to make" in said and "A001_C002_s0.mp4" in said and "64x64x21" in said
    assert not (tmp_path / "out" / KEPT).exists()


def one_clip(start: float = 0, length: float = 5, settings: Any = None, **metadata: Any) -> str:
    if settings is not None:
        metadata = {"s2video": {"prompt": "a", "settings": settings}}
    times = (otio.opentime.RationalTime(value, 24) for value in (start, length))
    timeline = otio.schema.Timeline("x", metadata=metadata)
    timeline.tracks.append(otio.schema.Track("V1"))
    clip = otio.schema.Clip("a", source_range=otio.opentime.TimeRange(*times), metadata=metadata)
    timeline.tracks[0].append(clip)
    return str(timeline.to_json_string())


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ("{}", ".otio", "expected one timeline, got 0"),
        ("[" * 100_000, ".otio", "expected JSON of at most 50 levels"),
        ('{"OTIO_SCHEMA": "Timeline.1", "name": "x"}', ".otio", "expected a timeline, got an error"),
        (otio.schema.Timeline("x").to_json_string(), ".otio", "expected a video track with clips, got none"),
        ("<xmeml", ".xml", "expected a timeline, got an error"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><xmeml>&b;</xmeml>', ".xml", "expected XML without entities of its own"),
        ("<xmeml></xmeml>", ".xml", "expected a timeline, got an error (No top-level sequences found)"),
        ("TITLE: x\n001  AX V C 99:99:99:99 00 00 00\n", ".edl", "an EDL has no frame rate"),
        ("FCM: DROP FRAME\n001  AX V C 99:99:99:99 00 00 00\n", ".edl", "expected a timeline, got an error"),
        ("FCM: DROP FRAME\n", ".edl", "got none"),
        ("FCM: DROP FRAME\n" + "\n" * 100_000, ".edl", "got none"),  # not in the square of its empty lines
        (one_clip(start=math.nan, settings={}), ".otio", "expected times in frames, got nan at a rate of 24.0"),
        (one_clip(length=math.inf), ".otio", "expected times in frames, got inf at a rate of 24.0"),
        (one_clip(s2video="x", cmx_3600=1), ".otio", "expected a clip with a prompt, got none"),
        (one_clip(settings={"output": {"ffmpeg": "/x"}}), ".otio", "output.ffmpeg: a timeline may not name a program"),
        (one_clip(settings={"output.fps": 25}), ".otio", "output.fps: the clip itself decides it; leave it out"),
    ],
)
def test_files_that_are_no_timelines(
    content: str, suffix: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"cut{suffix}"
    path.write_text(content, encoding="utf-8")
    assert main(["batch", "--timeline", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_timelines_and_settings_that_contradict_each_other(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = tmp_path / "cut.otio"
    timeline = editors_cut(FILM, drop=False)
    path.write_text(timeline.otio.to_json_string(), encoding="utf-8")

    def refusal(base: Path, *overrides: str, handles: int = 0) -> str:
        with pytest.raises(InputError) as caught:
            shots_in(path, base, overrides, handles=handles, open_model=open_checkpoint)
        return str(caught.value)

    base = settings_file(tmp_path, tiny_checkpoint, shots=["a"])
    assert "expected shots from here or from the timeline, got both" in refusal(base)
    base = settings_file(tmp_path, tiny_checkpoint)
    assert "output.fps: expected 24000/1001, the rate of" in refusal(base, "output.fps=16")
    assert "--handles: expected frames from 0 to 1000, got 2000" in refusal(base, handles=2000)
    for clip in timeline.otio.find_clips():
        clip.metadata.clear()
        clip.markers.clear()
    path.write_text(timeline.otio.to_json_string(), encoding="utf-8")
    assert "expected a clip with a prompt, got none; write it into the clip's metadata as s2video.prompt" in refusal(
        base
    )
    path.write_text(editors_cut(FILM, drop=False).otio.to_json_string(), encoding="utf-8")
    shots = shots_in(path, base, ("output.timecode='02:00:00:00'",), handles=0, open_model=open_checkpoint).shots
    assert not any("output.timecode" in shot for shot in shots)  # the run file's own


def test_frames_that_transitions_show_are_made(tmp_path: Path, tiny_checkpoint: Path) -> None:
    timeline = editors_cut(FILM, drop=False).otio
    three = otio.opentime.RationalTime(3, float(FILM))
    timeline.tracks[0].insert(4, otio.schema.Transition("dissolve", in_offset=three, out_offset=three))
    timeline.tracks[0].insert(3, otio.schema.Transition("dissolve", in_offset=three, out_offset=three))
    path = tmp_path / "cut.otio"
    path.write_text(timeline.to_json_string(), encoding="utf-8")
    base = settings_file(tmp_path, tiny_checkpoint)
    (shot,) = (
        item
        for item in shots_in(path, base, (), handles=1, open_model=open_checkpoint).shots
        if item["shot"] == "sh020"
    )
    assert shot["sampling.num_frames"] == 13  # 3 and 5 and 3, rounded up
    assert shot["output.timecode"] == "01:00:01:23"
