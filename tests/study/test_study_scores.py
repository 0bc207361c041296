"""Tests of scores from other programs and from a CLIP model, and of votes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from study_helpers import StudyRun, write_clip
from tiny_hunyuan import build_clip_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from s2video.errors import InputError
from s2video.media.video import read_video
from s2video.study import clip_model
from s2video.study.clips import Clip, Study, pair_folders, read_study
from s2video.study.results import compare
from s2video.study.scores import read_scores
from s2video.study.votes import pairs_of, read_votes


@pytest.fixture
def study(elsewhere: dict[str, Path]) -> Study:
    return pair_folders(elsewhere)


# files of scores


def test_a_csv_file_of_scores(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(
        "measure, video, value, who\na,cfg/prompt 0-0.mp4,1.5,x\na,/other/place/mine/prompt 0-0.mp4,-2e-1,x\n"
    )
    assert read_scores(path, study) == {"a": {("prompt 0-0", "cfg"): 1.5, ("prompt 0-0", "mine"): -0.2}}
    path.write_text("video,measure,value\nprompt 0-0.mp4,a,3\n")
    assert read_scores(path, study, setting="mine") == {"a": {("prompt 0-0", "mine"): 3.0}}


def test_vbenchs_result_file(study: Study, tmp_path: Path) -> None:
    """The form that VBench writes: dimension -> [mean, videos]; some results are true or false."""
    videos = [
        {"video_path": f"./runs/{name}/prompt 1-0.mp4", "video_results": 0.5 + i}
        for i, name in enumerate(study.settings)
    ]
    static = [{"video_path": "x/mine/prompt 1-1.mp4", "video_results": True, "frame_results": [1]}]
    path = tmp_path / "r_eval_results.json"
    path.write_text(json.dumps({"imaging_quality": [0.6, videos], "dynamic_degree": [1.0, static]}))
    assert read_scores(path, study) == {
        "imaging_quality": {("prompt 1-0", "cfg"): 0.5, ("prompt 1-0", "mine"): 1.5},
        "dynamic_degree": {("prompt 1-1", "mine"): 1.0},
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "video,value\n", "expected a header with video, measure and value"),
        ("s.csv", "video,measure,value\n", "expected scores of videos, got none"),
        ("s.csv", "video,measure,value\ncfg/prompt 0-0.mp4,a,x\n", "line 2: expected a number, got 'x'"),
        ("s.csv", "video,measure,value\ncfg/prompt 0-0.mp4,a,inf\n", "expected a number"),
        ("s.csv", "video,measure,value\ncfg/prompt 0-0.mp4,a\n", "line 2: expected a video, a measure and a value"),
        ("s.csv", "video,measure,value\ncfg/nobody.mp4,a,1\n", "expected a video of the study, got 'cfg/nobody.mp4'"),
        ("s.csv", "video,measure,value\nprompt 0-0.mp4,a,1\n", "expected a path that tells the setting"),
        ("s.csv", "video,measure,value\nx/prompt 0-0.mp4,a,1\n", "or pass SETTING=FILE"),
        ("s.csv", 2 * "video,measure,value\ncfg/prompt 0-0.mp4,a,1\n"[20:], "expected a header"),
        (
            "s.csv",
            "video,measure,value\n" + 2 * "cfg/prompt 0-0.mp4,a,1\n",
            "expected one a of cfg/prompt 0-0.mp4, got two",
        ),
        ("s.txt", "", "expected a .csv file, or the .json file of VBench"),
        ("s.json", "[]", "expected VBench's dimensions"),
        ("s.json", '{"a": 3}', "a: expected [mean, list of videos]"),
        ("s.json", '{"a": [1, [3]]}', "expected video_path and video_results"),
        ("s.json", '{"a": [1, [{"video_path": "cfg/prompt 0-0.mp4"}]]}', "expected a number, got null"),
    ],
)
def test_scores_that_cannot_be_used(study: Study, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_scores(tmp_path / name, study)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_scores_are_compared_like_measures(
    made_study: StudyRun, study_copy: StudyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "aesthetic.csv"
    rows = [f"{setting}/00{n}-1.mp4,aesthetic,{n + gain}" for gain, setting in enumerate(("cfg", "s2")) for n in (1, 2)]
    path.write_text("\n".join(["video,measure,value", *rows]))
    assert made_study.study(study_copy.folder, "--scores", path, "--json") == 0
    row = json.loads(capsys.readouterr().out)["rows"][-1]
    assert row["measure"] == "aesthetic" and row["means"] == {"cfg": 1.5, "s2": 2.5, "strong": None}
    assert row["differences"][0]["estimate"] == [1.0, 1.0, 1.0] and row["differences"][1]["num_clips"] == 0
    assert made_study.study(study_copy.folder, "--scores", path, path) == 2
    assert "is known already" in capsys.readouterr().err
    assert made_study.study(study_copy.folder, "--scores", f"x={path}") == 2
    assert "expected one of cfg, s2, strong, got 'x'" in capsys.readouterr().err
    assert made_study.study(study_copy.folder, "--scores", path, "-o", tmp_path / "a.html") == 0
    assert made_study.study(study_copy.folder, "--scores", tmp_path / "a.measures.json", "-o", tmp_path / "a.html") == 2
    assert "which is read" in capsys.readouterr().err


# a CLIP model


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights, whose pictures have 32 x 32 pixels."""
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer()
    width = {"num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "hidden_size": 16}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=40,
        **width,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **width)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_are_those_of_transformers(clip_folder: Path, tmp_path: Path) -> None:
    """At the model's own size nothing is resized, so its own forward gives the same cosines."""
    path = write_clip(tmp_path / "a.mp4", torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(1)))
    found = clip_model.ClipModel(clip_folder).scores("a red wall", path)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    mean, std = torch.tensor(clip_model._MEAN), torch.tensor(clip_model._STD)
    pixels = ((read_video(path).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    tokens = build_clip_tokenizer()("a red wall", return_tensors="pt")
    with torch.inference_mode():
        output = model(pixel_values=pixels, **tokens)
        cosines = output.logits_per_image / model.logit_scale.exp()
    assert found["clip_text"] == pytest.approx(float(cosines.mean()), abs=1e-5)
    images = output.image_embeds
    assert found["clip_consistency"] == pytest.approx(float((images[1:] * images[:-1]).sum(-1).mean()), abs=1e-5)


def test_clip_takes_any_size_and_a_long_prompt(clip_folder: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", torch.rand(1, 48, 96, 3))
    found = clip_model.ClipModel(clip_folder).scores("red " * 100, path)
    assert set(found) == {"clip_text"} and -1 <= found["clip_text"] <= 1


def test_the_command_with_a_clip_model(
    study_copy: StudyRun, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study_copy.study(study_copy.folder, "--clip", clip_folder, "--json") == 0
    rows = {row["measure"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert len({rows["clip_text"]["means"][name] for name in ("cfg", "s2", "strong")}) == 3
    assert "not VBench" not in rows["clip_text"]["meaning"] and rows["clip_consistency"]["meaning"]


def test_folders_that_are_no_clip_model(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(InputError, match=r"config\.json: expected JSON, but the file cannot be read"):
        clip_model.ClipModel(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="expected a CLIP model"):
        clip_model.ClipModel(tmp_path)
    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    with pytest.raises(InputError, match="cannot be loaded"):
        clip_model.ClipModel(tmp_path)
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be loaded"):
        clip_model.ClipModel(tmp_path)
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 are missing, such as visual_projection\.weight"):
        clip_model.ClipModel(tmp_path)


# votes


def vote_file(path: Path, study: Study, choose: Callable[[int, str, str], str], **fields: Any) -> Path:
    """Write the file that the page would save, with `choose(number, left, right)` for each pair."""
    votes = [
        {"pair": pair.key, "choice": choose(number, pair.left, pair.right), "blind": True}
        for number, pair in enumerate(pairs_of(study))
    ]
    path.write_text(json.dumps({"voter": "", "votes": votes, **fields}))
    return path


def towards(setting: str) -> Callable[[int, str, str], str]:
    return lambda _, left, right: "left" if left == setting else "right"


def test_sides_are_shuffled_and_always_the_same(study: Study, elsewhere: dict[str, Path]) -> None:
    pairs = list(pairs_of(study))
    assert pairs == list(pairs_of(pair_folders(elsewhere))) and len({pair.key for pair in pairs}) == 8
    video = {name: study.clips[0].videos[name] for name in study.settings}
    many = Study("s", study.settings, tuple(Clip(str(n), "p", video) for n in range(300)), {})
    lefts = [pair.left for pair in pairs_of(many)]
    assert 110 < lefts.count("cfg") < 190
    assert {(pair.left, pair.right) for pair in pairs_of(many)} == {("cfg", "mine"), ("mine", "cfg")}


def test_votes_of_several_voters(study: Study, tmp_path: Path) -> None:
    ann = vote_file(tmp_path / "a.json", study, towards("mine"), voter="Ann")
    bob = vote_file(
        tmp_path / "b.json", study, lambda n, left, right: "same" if n < 4 else towards("cfg")(n, left, right)
    )
    votes = read_votes([ann, bob], study)
    (preference,) = compare(study, {}, {}, votes).preferences
    assert (preference.wins, preference.same, preference.losses) == (8, 4, 4)
    assert preference.difference.estimate.value == pytest.approx(0.25) and votes.num_voters == 2
    assert preference.difference.num_prompts == 4


def test_votes_after_the_names_were_shown_do_not_count(study: Study, tmp_path: Path) -> None:
    path = vote_file(tmp_path / "a.json", study, towards("mine"))
    content = json.loads(path.read_text())
    content["votes"][0]["blind"] = False
    content["votes"][1]["pair"] = "0" * 16
    path.write_text(json.dumps(content))
    votes = read_votes([path], study)
    assert (len(votes.counted), votes.seen, votes.unknown) == (6, 1, 1)
    notes = compare(study, {}, {}, votes).notes
    assert any("1 votes do not count, because the names" in note for note in notes) and len(notes) == 2


def test_votes_on_videos_that_were_made_again_are_not_taken_for_others(
    study: Study, elsewhere: dict[str, Path], tmp_path: Path
) -> None:
    path = vote_file(tmp_path / "a.json", study, towards("mine"))
    for file in elsewhere["mine"].iterdir():
        file.write_bytes((elsewhere["cfg"] / file.name).read_bytes())
    with pytest.raises(InputError, match="got none; were they made again"):
        read_votes([path], pair_folders(elsewhere))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{",
        '{"votes": [3]}',
        '{"votes": [{"pair": "x", "choice": "up"}]}',
        '{"votes": [{"pair": "x", "choice": "left"}, {"pair": "x", "choice": "left"}]}',
    ],
)
def test_votes_that_cannot_be_used(study: Study, tmp_path: Path, text: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_votes([tmp_path / "v.json"], study)
    assert "v.json" in str(caught.value)


def test_a_voter_counts_once(study: Study, tmp_path: Path) -> None:
    first = vote_file(tmp_path / "a.json", study, towards("mine"), voter="Ann")
    second = vote_file(tmp_path / "b.json", study, towards("cfg"), voter="Ann")
    for files in ([first, second], [first, first]):
        with pytest.raises(InputError, match=r"expected another voter than in .*a\.json, got the same"):
            read_votes(files, study)


def test_the_command_counts_votes(study_copy: StudyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = vote_file(tmp_path / "v.json", read_study(study_copy.folder), towards("s2"))
    assert study_copy.study(study_copy.folder, "--votes", path) == 0
    assert "votes: 2 for s2, 0 the same, 0 for cfg" in capsys.readouterr().out
    assert "votes: 2 for s2" in (study_copy.folder / "study.html").read_text()
    assert study_copy.study(study_copy.folder, "--votes", path, "-o", path, "--overwrite") == 2
    assert "this is the file of --votes" in capsys.readouterr().err
