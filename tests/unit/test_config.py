"""Tests of config files: values, refusals, and their messages."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from s2video.batch.run_file import load_batch
from s2video.config.guidance import GuidanceConfig
from s2video.config.run import RunConfig, build_config, read_config
from s2video.config.text import dotted_keys
from s2video.engine.job import plan_jobs
from s2video.errors import InputError
from s2video.guidance.masks import MaskSpec
from s2video.media.output_paths import OutputPaths

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("guidance: {cfg_scale: 1e-4}", "guidance.cfg_scale", 1e-4),
        ("guidance: {cfg_scale: 4}", "guidance.cfg_scale", 4.0),
        ("guidance: {cfg_scale: +1E3}", "guidance.cfg_scale", 1000.0),
        ("sampling: {seed: 1e3}", "sampling.seed", 1000),
        ("sampling: {seed: 0x10}", "sampling.seed", 16),
        ("sampling: {seed: 7.0}", "sampling.seed", 7),
        ("sampling: {seed: 9223372036854775807}", "sampling.seed", 2**63 - 1),
        ("guidance: {never_drop: []}", "guidance.never_drop", ()),
        ("guidance: {band: [3, 3]}", "guidance.band", (3, 3)),
        ("guidance: {window: [0, 1]}", "guidance.window", (0.0, 1.0)),
        ("guidance: {window: [1e-1, 0.5]}", "guidance.window", (0.1, 0.5)),
        ("guidance: {share_prefix: no}", "guidance.share_prefix", False),
        ("output: {fps: 24000/1001}", "output.fps", Fraction(24000, 1001)),
        ("output: {fps: 23.976}", "output.fps", Fraction(24000, 1001)),
        ("output: {fps: 29.97002997}", "output.fps", Fraction(30000, 1001)),
        ("output: {fps: 25}", "output.fps", Fraction(25)),
        ('prompt: "010"', "prompt", "010"),
        ('prompt: "on"', "prompt", "on"),
        ("prompt: 一只猫", "prompt", "一只猫"),
    ],
)
def test_values_are_read(tmp_path: Path, text: str, key: str, value: object) -> None:
    found: object = load(tmp_path, text)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("prompt: on", ["prompt: expected text", "True", "quote it"]),
        ("prompt: 12", ["prompt: expected text", "12", "quote it"]),
        ("prompt: 2024-01-01", ["prompt: expected text", "quote it"]),
        ("prompt: a: b", ["line 1", "not usable as YAML"]),
        ("prompt: 010", ["010 as 8", "quote it"]),
        ("prompt: 12:30:00", ["12:30:00 as 45000", "quote it"]),
        ("sampling: {seed: 010}", ["010 as 8"]),
        ("sampling: {width: 08}", ["sampling.width: expected a whole number", "'08'"]),
        ("negative_prompt:", ["negative_prompt: expected text", 'write ""']),
        ("sampling: {seed: true}", ["sampling.seed: expected a whole number", "True"]),
        ("sampling: {seed: 1.5}", ["sampling.seed: expected a whole number", "1.5"]),
        ('sampling: {seed: "17"}', ["sampling.seed: expected a whole number", "'17'"]),
        ("sampling: {num_frames: 0}", ["sampling.num_frames: expected a value >= 1", "0"]),
        ("guidance: {cfg_scale: true}", ["guidance.cfg_scale: expected a number", "True"]),
        ("guidance: {cfg_scale: .nan}", ["guidance.cfg_scale: expected a finite number", "nan"]),
        ("guidance: {cfg_scale: -.inf}", ["guidance.cfg_scale: expected a finite number", "-inf"]),
        ("guidance: {cfg_scale: 1e999}", ["guidance.cfg_scale: expected a finite number", "1e999"]),
        (f"guidance: {{cfg_scale: 1{'0' * 350}}}", ["guidance.cfg_scale: expected a finite number"]),
        (f"sampling: {{seed: {'9' * 5000}}}", ["over 400 digits"]),
        ("guidance: {share_prefix: 1}", ["guidance.share_prefix: expected true or false", "1"]),
        ("guidance: {form: deviaton}", ["guidance.form: expected 'deviation' or 'original'", "'deviaton'"]),
        ("guidance: {window: [0.9, 0.1]}", ["guidance.window", "ascending", "swap"]),
        ("guidance: {window: [0.1]}", ["guidance.window", "expected more values"]),
        ("guidance: {window: [0, 1, 2]}", ["guidance.window", "expected 2 values"]),
        ("guidance: {window: 0.4}", ["guidance.window: expected a list"]),
        ("guidance: {window: [0.1, 1.5]}", ["guidance.window.1: expected a value <= 1", "1.5"]),
        ("guidance: {band: [5, 2]}", ["guidance.band", "ascending"]),
        ("guidance: {never_drop: 0}", ["guidance.never_drop: expected a list"]),
        ("output: {fps: 1/0}", ["output.fps", "frame rate", "1/0"]),
        ("output: {fps: .inf}", ["output.fps", "frame rate"]),
        ("output: {fps: 1/1001001}", ["output.fps", "1001000"]),
        ("guidance: 4", ["guidance: expected a mapping", "4"]),
        ("guidance: {s2_scael: 1}", ["unknown key 'guidance.s2_scael'", "did you mean 'guidance.s2_scale'?"]),
        ("s2_scale: 1", ["unknown key 's2_scale'", "did you mean 'guidance.s2_scale'?"]),
        ("sampling: {fps: 8}", ["unknown key 'sampling.fps'", "did you mean 'output.fps'?"]),
        ("sampling: {qqq: 8}", ["unknown key 'sampling.qqq'", "sampling.width", "sampling.seed"]),
        ("zzz: 1", ["unknown key 'zzz'", "model", "guidance"]),
        ("1: 2", ["expected text as a key"]),
        ("prompt: a\nprompt: b", ["line 2", "given twice"]),
        ("- a\n- b", ["expected a mapping", "list"]),
        ("", ["is empty"]),
        ("# only a comment", ["is empty"]),
        ("model:\n\tpath: x", ["line 2", "tabs"]),
        ("prompt: [", ["line 1", "not usable as YAML"]),
        ("prompt: !!python/object:os.system x", ["not usable as YAML"]),
        ("guidance: {cfg_scale: x, s2_scale: y}", ["guidance.cfg_scale", "guidance.s2_scale", ";"]),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, text: str, fragments: list[str]) -> None:
    message = refusal(tmp_path, text)
    for fragment in ["config.yaml", *fragments]:
        assert fragment in message


def test_overrides_are_applied_in_order_and_keep_their_neighbours(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "guidance: {cfg_scale: 3}",
        "guidance.s2_scale=0.3",
        "guidance.s2_scale=1e-1",
        "guidance={num_draws: 2}",
        "guidance.band=[1, 4]",
        "output.fps=24000/1001",
        "prompt=a red circle",
    )
    assert config.guidance == GuidanceConfig(cfg_scale=3, s2_scale=0.1, num_draws=2, band=(1, 4))
    assert config.output.fps == Fraction(24000, 1001)
    assert config.prompt == "a red circle"


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("guidance.s2_scal=1", ["unknown key 'guidance.s2_scal'", "'guidance.s2_scale'"]),
        ("s2_scale=1", ["unknown key 's2_scale'", "'guidance.s2_scale'"]),
        ("outptu.fps=12", ["unknown key 'outptu.fps'", "'output.fps'"]),
        ("prompt.x=1", ["unknown key 'prompt.x'"]),
        ("guidance.band.x=1", ["unknown key 'guidance.band.x'", "'guidance.band'"]),
        ("guidance.s2_scale", ["expected key=value"]),
        ("=3", ["expected key=value"]),
        ("guidance.band=[", ["guidance.band=[", "not usable as YAML"]),
        ("guidance.window=0.1,0.9", ["guidance.window: expected a list"]),
        ("prompt=a: b", ["prompt: expected text", "quote it"]),
        ("prompt=off", ["prompt: expected text", "quote it"]),
        ("negative_prompt=", ["negative_prompt: expected text", 'write ""']),
        ("guidance=3", ["guidance: expected a mapping"]),
    ],
)
def test_overrides_are_checked_like_the_file(tmp_path: Path, override: str, fragments: list[str]) -> None:
    message = refusal(tmp_path, "guidance: {cfg_scale: 3}", override)
    for fragment in fragments:
        assert fragment in message


def test_an_override_below_a_value_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "guidance: expected a mapping" in refusal(tmp_path, "guidance: 4", "guidance.s2_scale=1")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("prompt: caf\xe9".encode("latin-1"))
    for name, fragment in [("none.yaml", "does not exist"), ("latin.yaml", "UTF-8"), (".", "cannot be read")]:
        with pytest.raises(InputError, match=fragment):
            read_config(tmp_path / name)


def test_what_is_dumped_loads_again(tmp_path: Path) -> None:
    config = build_config(
        {
            "prompt": "on",
            "guidance": {"band": [1, 3], "cfg_scale": 1e-7, "never_drop": [0, 2], "mask_seed": 2**63 - 1},
            "output": {"fps": "24000/1001"},
        }
    )
    dumped = config.model_dump(mode="json")
    assert load(tmp_path, json.dumps(dumped)) == config
    assert load(tmp_path, yaml.safe_dump(dumped)) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert build_config(RunConfig().model_dump(mode="json")) == RunConfig()


def test_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().prompt = "x"


def test_mask_spec_carries_every_setting_of_the_masks() -> None:
    settings = {
        "drop_ratio": 0.2,
        "drop_count": 3,
        "never_drop": (0, 5),
        "band": (1, 8),
        "window": (0.2, 0.7),
        "num_draws": 4,
    }
    assert GuidanceConfig(**settings).mask_spec() == MaskSpec(**settings)
    assert RunConfig().guidance.mask_spec() == MaskSpec()


def test_every_field_is_described() -> None:
    def undescribed(model: type[BaseModel], prefix: str = "") -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            if not field.description:
                missing.append(prefix + name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                missing += undescribed(field.annotation, f"{prefix}{name}.")
        return missing

    assert undescribed(RunConfig) == []


def test_shapes_config_names_and_explains_every_setting() -> None:
    text = (CONFIGS / "shapes.yaml").read_text(encoding="utf-8")

    def keys(values: dict[str, object], prefix: str = "") -> set[str]:
        found = {prefix + key for key in values}
        for key, value in values.items():
            if isinstance(value, dict):
                found |= keys(value, f"{prefix}{key}.")
        return found

    assert keys(yaml.safe_load(text)) == set(dotted_keys(RunConfig))
    unexplained = [line for line in text.splitlines() if line.startswith("  ") and "#" not in line]
    assert unexplained == []


@pytest.mark.parametrize(
    ("name", "model", "size", "shift"),
    [
        ("wan2.1-t2v-1.3b-480p.yaml", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (832, 480), 3.0),
        ("wan2.1-t2v-14b-720p.yaml", "Wan-AI/Wan2.1-T2V-14B-Diffusers", (1280, 720), 5.0),
    ],
)
def test_wan_configs_have_the_published_settings(name: str, model: str, size: tuple[int, int], shift: float) -> None:
    config = read_config(CONFIGS / name)
    sampling = config.sampling
    assert config.model.path == model
    assert (config.model.dtype, config.model.text_encoder_dtype, config.model.vae_dtype) == (
        "bfloat16",
        "bfloat16",
        "float32",
    )
    assert (sampling.width, sampling.height, sampling.num_frames) == (*size, 81)
    assert (sampling.num_inference_steps, sampling.flow_shift, sampling.max_sequence_length) == (50, shift, 512)
    assert (config.guidance.cfg_scale, config.guidance.s2_scale) == (5.0, 0.25)
    assert config.output.fps == 16
    assert config.negative_prompt.startswith("色调艳丽，过曝") and config.negative_prompt.endswith("倒着走")


@pytest.mark.parametrize(
    ("name", "model", "size", "steps", "shift", "scale"),
    [
        ("wan2.1-i2v-14b-480p", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", (832, 480), 40, 3.0, 5.0),
        ("wan2.1-i2v-14b-720p", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", (1280, 720), 40, 5.0, 5.0),
        ("wan2.1-flf2v-14b-720p", "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", (1280, 720), 50, 16.0, 5.0),
        ("wan2.2-i2v-a14b", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", (1280, 720), 40, 5.0, 3.5),
    ],
)
def test_configs_for_images_have_the_published_settings(
    name: str, model: str, size: tuple[int, int], steps: int, shift: float, scale: float
) -> None:
    config, t2v = read_config(CONFIGS / f"{name}.yaml"), read_config(CONFIGS / "wan2.1-t2v-14b-720p.yaml")
    assert config.model == t2v.model.model_copy(update={"path": model})
    assert (config.sampling.width, config.sampling.height, config.sampling.num_frames) == (*size, 81)
    assert (config.sampling.num_inference_steps, config.sampling.flow_shift) == (steps, shift)
    assert (config.guidance.cfg_scales, config.guidance.s2_scale) == ((scale, scale), 0.25)
    assert (config.negative_prompt, config.output.fps) == (t2v.negative_prompt, 16)
    assert config.image_paths == (None, None)


@pytest.mark.parametrize(
    ("name", "model", "size", "steps", "scales", "fps"),
    [
        ("t2v-a14b", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", (1280, 720, 81), 40, (4.0, 3.0), 16),
        ("ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", (1280, 704, 121), 50, (5.0, 5.0), 24),
        (
            "t2v-a14b-lightning",
            "rockapaper/Wan2.2-T2V-A14B-Merge-Lightning-V1.0-Diffusers",
            (1280, 720, 81),
            4,
            (1.0, 1.0),
            16,
        ),
    ],
)
def test_wan_2_2_configs_have_the_published_settings(
    name: str, model: str, size: tuple[int, int, int], steps: int, scales: tuple[float, float], fps: int
) -> None:
    config = read_config(CONFIGS / f"wan2.2-{name}.yaml")
    sampling, guidance = config.sampling, config.guidance
    assert (config.model.path, config.model.dtype, config.model.vae_dtype) == (model, "bfloat16", "float32")
    assert (sampling.width, sampling.height, sampling.num_frames) == size
    assert (sampling.num_inference_steps, config.output.fps) == (steps, fps)
    assert (guidance.cfg_scales, guidance.s2_scale) == (scales, 0.25)
    assert all(guidance.mask_spec().active(step, steps) for step in range(steps)) == (steps == 4)


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (23.976, "24000/1001"),
        ("23.976", "24000/1001"),
        (23.98, "24000/1001"),
        (29.97, "30000/1001"),
        ("29.97", "30000/1001"),
        (47.952, "48000/1001"),
        (59.94, "60000/1001"),
        (119.88, "120000/1001"),
        ("2997/125", "2997/125"),  # as older sidecars have it
        (24.0, "24"),
        (12.5, "25/2"),
        (23.9, "239/10"),
    ],
)
def test_rounded_ntsc_rates_mean_the_exact_ones(written: object, rate: str) -> None:
    assert str(build_config({"output": {"fps": written}}).output.fps) == rate


def test_paths_of_settings_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = build_config(
        {"image": "~/i.png", "output": {"path": "~/v.mp4", "audio": "~/a.wav", "ffmpeg": "~/ffmpeg"}, "prompt": "p"}
    )
    (job,) = plan_jobs(config, ["p"])
    spec = config.output.spec(Path("x.mp4"))
    found = [OutputPaths.of(config).video, OutputPaths.of(job).sidecar, spec.audio, spec.ffmpeg, config.image_paths[0]]
    assert found == [tmp_path / name for name in ("v.mp4", "v.json", "a.wav", "ffmpeg", "i.png")]
    assert job.output.path == str(tmp_path / "v.mp4")
    (tmp_path / "shots.txt").write_text("a\nb\n")
    (tmp_path / "run.yaml").write_text("{shots: ~/shots.txt, folder: ~/out}")
    assert load_batch(tmp_path / "run.yaml").folder == tmp_path / "out"
    with pytest.raises(InputError, match="expected the name of a user after ~"):
        OutputPaths.of(build_config({"output": {"path": "~no-such-user/v.mp4"}}))


def test_a_push_takes_the_place_of_the_default_scale() -> None:
    config = build_config({"guidance": {"s2_push": 0.05}})
    assert config.guidance.uses_s2
    assert config.patched({"guidance.num_draws": 2}).guidance.s2_push == 0.05  # the dump holds the default s2_scale
    for guidance, said in (
        ({"s2_push": 0.05, "s2_scale": 0.5}, "got s2_scale 0.5 and s2_push 0.05"),
        ({"s2_push": 0.05, "s2_scale": 0}, "got s2_scale 0 and s2_push 0.05"),
        ({"s2_push": 0.05, "form": "original"}, "expected form deviation"),
        ({"s2_push": 0.05, "method": "apg"}, "expected s2_push null, because method is apg"),
        ({"s2_push": 0}, "guidance.s2_push: expected a value > 0"),
    ):
        with pytest.raises(InputError) as refused:
            build_config({"guidance": guidance})
        assert said in str(refused.value)
