"""The ComfyUI nodes, behind a stub of the names of ComfyUI that they use; with a real checkout where one is given."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import comfy_stub as stub
import pytest
import torch

from s2video.guidance.equations import Predictions, combine
from s2video.guidance.masks import MaskSpec, dropped_blocks

stub.install()
PACK = stub.load_pack()
S2Guidance = sys.modules["s2_pack.nodes"].S2Guidance
S2Server = sys.modules["s2_pack.nodes"].S2Server
S2Error = sys.modules["s2_pack.guidance"].S2Error
step_of = sys.modules["s2_pack.guidance"].step_of

BLOCKS = 12
SIGMAS = [1.0, 0.95, 0.9, 0.83, 0.74, 0.62, 0.45, 0.2, 0.1, 0.05, 0.0]  # ten steps: the window has 1 to 8
SETTINGS: dict[str, Any] = {
    "s2_scale": 0.5,
    "drop_ratio": 0.2,
    "drop_count": 0,
    "never_drop": "0",
    "window_start": 0.1,
    "window_end": 0.9,
    "num_draws": 1,
    "mask_seed": 11,
}


@pytest.fixture(scope="module")
def transformer() -> stub.WanLike:
    torch.manual_seed(0)
    return stub.WanLike(BLOCKS).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 3, 4, 4), torch.randn(4), torch.randn(4)  # two samples: x, cond, uncond


def _patch(transformer: torch.nn.Module, **changes: Any) -> stub.Model:
    (model,) = S2Guidance.execute(model=stub.Model(transformer), **{**SETTINGS, **changes})
    return model


def _without(transformer: stub.WanLike, mask: tuple[int, ...]) -> stub.Model:
    short = stub.WanLike(0)
    short.blocks = torch.nn.ModuleList(block for i, block in enumerate(transformer.blocks) if i not in mask)
    return stub.Model(short)


def _masks(step: int, draws: int = 1, total: int = 10) -> list[tuple[int, ...]]:
    spec = MaskSpec(drop_ratio=0.2)
    if not spec.active(step, total):
        return []
    return [dropped_blocks(spec, num_blocks=BLOCKS, seed=11, step=step, draw=draw) for draw in range(draws)]


@pytest.mark.parametrize("step", range(10))
@pytest.mark.parametrize(("cfg", "draws"), [(3.0, 1), (1.0, 1), (3.0, 2)])
def test_eq_4_with_the_masks_of_the_package_to_the_bit(transformer, inputs, step, cfg, draws) -> None:
    x, cond, uncond = inputs
    sigma = SIGMAS[step]
    got = _patch(transformer, num_draws=draws).call(x, sigma, SIGMAS, cond, None if cfg == 1 else uncond, cfg)

    plain = stub.Model(transformer)
    guided = plain.call(x, sigma, SIGMAS, cond, None if cfg == 1 else uncond, cfg)
    cond_x0 = plain.call(x, sigma, SIGMAS, cond, None, 1.0)
    subs = [_without(transformer, m).call(x, sigma, SIGMAS, cond, None, 1.0) for m in _masks(step, draws)]
    for sub in subs:
        guided = guided - 0.5 / len(subs) * (sub - cond_x0)
    assert torch.equal(got, guided)
    assert bool(subs) == (1 <= step <= 8)


def test_it_is_eq_4_for_velocities(transformer, inputs) -> None:
    """x0 = x − σ v: the node's result is that of the package's own equation on velocities."""
    x, cond, uncond = inputs
    sigma, level = SIGMAS[4], torch.full((2,), SIGMAS[4])
    (mask,) = _masks(4)
    velocity = lambda model, text: model.model.diffusion_model(x, level, text, {})  # noqa: E731
    whole = stub.Model(transformer)
    predictions = Predictions(
        velocity(whole, cond), velocity(whole, uncond), (velocity(_without(transformer, mask), cond),)
    )
    expected = x - sigma * combine(predictions, cfg_scale=3.0, s2_scale=0.5)
    torch.testing.assert_close(
        _patch(transformer).call(x, sigma, SIGMAS, cond, uncond, 3.0), expected, rtol=0, atol=1e-5
    )


def test_scale_zero_and_the_unpatched_model_are_plain_cfg(transformer, inputs) -> None:
    x, cond, uncond = inputs
    model = stub.Model(transformer)
    plain = model.call(x, 0.62, SIGMAS, cond, uncond, 3.0)
    assert torch.equal(_patch(transformer, s2_scale=0.0).call(x, 0.62, SIGMAS, cond, uncond, 3.0), plain)
    S2Guidance.execute(model=model, **SETTINGS)
    assert torch.equal(model.call(x, 0.62, SIGMAS, cond, uncond, 3.0), plain)


def test_a_step_is_found_by_its_noise_level() -> None:
    assert [step_of(level, SIGMAS) for level in SIGMAS[:-1]] == list(range(10))
    assert step_of(0.8, SIGMAS) == 3  # a call in the middle of step 3, as samplers of second order make them
    assert step_of(1.3, SIGMAS) == 0 and step_of(0.0, SIGMAS) == 9
    assert step_of(0.83 * (1 + 1e-6), SIGMAS) == 3  # rounding of float32


def test_two_samplers_draw_the_masks_of_one(transformer, inputs) -> None:
    """The second of two samplers, as Wan 2.2's experts need them, goes on with the masks of step 6."""
    x, cond, uncond = inputs
    one = _patch(transformer).call(x, SIGMAS[6], SIGMAS, cond, uncond, 3.0)
    second = _patch(transformer, steps_before=4).call(x, SIGMAS[6], SIGMAS[4:], cond, uncond, 3.0)
    first = _patch(transformer, total_steps=10).call(x, SIGMAS[2], SIGMAS[:5], cond, uncond, 3.0)
    assert torch.equal(one, second)
    assert torch.equal(first, _patch(transformer).call(x, SIGMAS[2], SIGMAS, cond, uncond, 3.0))


def test_a_block_of_two_lists_is_numbered_through() -> None:
    class Hunyuan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.double_blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
            self.single_blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))

    blocks_of = sys.modules["s2_pack.guidance"].blocks_of
    assert blocks_of(Hunyuan()) == [("double_block", 0), ("double_block", 1), *(("single_block", i) for i in range(3))]


def test_a_dropped_first_block_passes_a_copy_on(transformer, inputs) -> None:
    """VACE keeps the first block's input for its hints and adds to the output in place."""
    skip = sys.modules["s2_pack.guidance"]._skip("double_block", 0, set())
    state = torch.ones(2)
    assert torch.equal(skip({"img": state, "txt": 1}, {})["img"], state)
    assert skip({"img": state}, {})["img"] is not state


class TestRefused:
    def test_a_model_whose_blocks_are_not_replaced(self, inputs) -> None:
        x, cond, uncond = inputs
        model = stub.WanLike(BLOCKS)
        model.replaceable = False
        with pytest.raises(S2Error, match="2 of 2 blocks to drop were not asked for by WanLike"):
            _patch(model).call(x, 0.62, SIGMAS, cond, uncond, 3.0)

    def test_a_model_without_blocks(self, inputs) -> None:
        x, cond, uncond = inputs
        with pytest.raises(S2Error, match="expected a diffusion transformer with blocks, got NoBlocks"):
            _patch(NoBlocks()).call(x, 0.62, SIGMAS, cond, uncond, 3.0)

    def test_easycache(self, transformer, inputs) -> None:
        x, cond, uncond = inputs
        model = _patch(transformer)
        model.model_options["transformer_options"]["easycache"] = object()
        with pytest.raises(S2Error, match="remove the EasyCache node"):
            model.call(x, 0.62, SIGMAS, cond, uncond, 3.0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"never_drop": "first"}, "expected block numbers from 0"),
            ({"never_drop": "1" * 400}, "expected block numbers from 0"),
            ({"window_start": 0.8, "window_end": 0.2}, "expected window_start ≤ window_end"),
        ],
    )
    def test_bad_input(self, transformer, changes, message) -> None:
        with pytest.raises(S2Error, match=message):
            _patch(transformer, **changes)

    def test_a_block_that_does_not_exist(self, transformer, inputs) -> None:
        x, cond, uncond = inputs
        with pytest.raises(S2Error, match="never_drop names block 40, but the model's last is 11"):
            _patch(transformer, never_drop="0, 40").call(x, 0.62, SIGMAS, cond, uncond, 3.0)

    def test_fewer_steps_in_all_than_one_sampler_does(self, transformer, inputs) -> None:
        x, cond, uncond = inputs
        with pytest.raises(S2Error, match="total_steps is 4, but this sampler does step 6"):
            _patch(transformer, total_steps=4).call(x, 0.62, SIGMAS, cond, uncond, 3.0)


class NoBlocks(torch.nn.Module):
    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x


def test_the_schema_and_the_function_agree() -> None:
    names = [socket.name for socket in S2Guidance.define_schema().inputs]
    assert set(names) == {"model", *SETTINGS, "steps_before", "total_steps"}
    first, second = asyncio.run(asyncio.run(PACK.comfy_entrypoint()).get_node_list())
    assert (first, second) == (S2Guidance, S2Server)


@pytest.mark.parametrize("path", sorted((stub.PACK / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_use_inputs_that_exist(path: Path) -> None:
    """Workflows are in the form of ComfyUI's API: node id -> class and inputs; a link is [node id, output]."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    names = {
        "S2Guidance": {socket.name for socket in S2Guidance.define_schema().inputs},
        "S2VideoServer": {socket.name for socket in S2Server.define_schema().inputs},
    }
    assert any(node["class_type"] in names for node in graph.values())
    for node in graph.values():
        links = [value for value in node["inputs"].values() if isinstance(value, list)]
        assert all(link[0] in graph for link in links)
        assert set(node["inputs"]) == names.get(node["class_type"], set(node["inputs"]))


class _Answers(BaseHTTPRequestHandler):
    """A server that makes a video in three looks, refuses some prompts, fails at "broken" and is "away" for a look."""

    REFUSED: ClassVar[dict[str, tuple[int, bytes]]] = {
        "bad": (400, b'{"error": {"message": "size: expected another"}}'),
        "locked": (401, b'{"error": {"message": "expected the header Authorization: Bearer KEY"}}'),
        "full": (429, b'{"error": {"message": "1000 videos wait already; try again later"}}'),
        "proxy": (502, b"<html>Bad Gateway</html>"),
        "page": (200, b"<html>Welcome</html>"),
    }

    seen: ClassVar[list[tuple[str, str, Any, str | None]]] = []
    states: ClassVar[list[dict[str, Any]]] = []

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append(("POST", self.path, body, self.headers.get("authorization")))
        if body["prompt"] in self.REFUSED:
            status, message = self.REFUSED[body["prompt"]]
            self._answer(status, message)
            return
        end = {"status": "completed", "progress": 100}
        if body["prompt"] == "broken":
            end = {"status": "failed", "progress": 0, "error": {"message": "out of memory"}}
        self.states[:] = [{"status": "in_progress", "progress": 40}, end]
        if body["prompt"] == "away":
            self.states.insert(1, {})
        elif body["prompt"] == "gone":
            self.states[1:] = [{}] * 10_000
        self._answer(200, b'{"id": "video_1", "status": "queued", "progress": 0}')

    def do_GET(self) -> None:
        if self.path.endswith("/content?codec=h264"):
            self._answer(200, b"the video")
        else:
            state = self.states.pop(0)
            if state:
                self._answer(200, json.dumps({"id": "video_1", **state}).encode())
            else:
                self.close_connection = True  # without an answer, as a server does that is killed

    def do_DELETE(self) -> None:
        self.seen.append(("DELETE", self.path, None, None))
        self._answer(200, b"{}")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys.modules["s2_pack.server"], "_POLL", 0.0)
    _Answers.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class TestServer:
    ASKED: ClassVar[dict[str, Any]] = {
        **{"prompt": "a fox", "negative_prompt": "", "model": "", "width": 64, "height": 32, "seconds": 1.0},
        **{"steps": 5, "cfg_scale": 2.0, "s2_scale": 0.5, "seed": 7},
    }

    def test_it_sends_a_prompt_and_returns_the_video(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("S2VIDEO_API_KEY", "secret")
        (video,) = S2Server.execute(server=address + "/", **self.ASKED)
        assert video.read() == b"the video"
        ((_, path, body, key),) = _Answers.seen
        assert (path, key) == ("/v1/videos", "Bearer secret")
        assert body == {
            **{"prompt": "a fox", "negative_prompt": "", "size": "64x32", "seconds": 1.0, "seed": 7},
            **{"sampling": {"num_inference_steps": 5}, "guidance": {"cfg_scale": 2.0, "s2_scale": 0.5}},
        }
        assert sys.modules["comfy.utils"].ProgressBar.shown == [40, 100]

    def test_its_fields_are_those_of_the_server(self) -> None:
        from s2video.server.video_request import FIELDS, SECTIONS, allowed

        assert {"prompt", "negative_prompt", "size", "seconds", "seed", "model"} <= set(FIELDS)
        assert "num_inference_steps" in allowed("sampling") and {"cfg_scale", "s2_scale"} <= set(allowed("guidance"))
        assert set(SECTIONS) == {"sampling", "guidance"}
        assert [socket.name for socket in S2Server.define_schema().inputs] == ["server", *self.ASKED]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ("bad", "size: expected another"),
            ("broken", "out of memory"),
            ("locked", "Authorization: Bearer KEY"),
            ("full", "1000 videos wait already"),
            ("proxy", "502 Bad Gateway"),
            ("page", "expected the answer of s2video serve"),
        ],
    )
    def test_what_the_server_says_is_shown(self, address: str, prompt: str, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            S2Server.execute(server=address, **{**self.ASKED, "prompt": prompt})

    def test_a_key_that_no_header_can_hold_is_not_shown(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("S2VIDEO_API_KEY", "secret\n")
        with pytest.raises(RuntimeError, match="expected an address such as") as raised:
            S2Server.execute(server=address, **self.ASKED)
        assert "secret" not in str(raised.value)

    def test_a_server_may_be_started_again_in_mid_job(self, address: str) -> None:
        (video,) = S2Server.execute(server=address, **{**self.ASKED, "prompt": "away"})
        assert video.read() == b"the video"

    def test_a_server_that_is_gone_is_told(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["s2_pack.server"], "_PATIENCE", 0.1)
        with pytest.raises(RuntimeError, match="the server does not answer"):
            S2Server.execute(server=address, **{**self.ASKED, "prompt": "gone"})

    def test_no_server(self) -> None:
        with pytest.raises(RuntimeError, match="start it with: s2video serve"):
            S2Server.execute(server="http://127.0.0.1:9", **self.ASKED)
        with pytest.raises(RuntimeError, match="expected an address"):
            S2Server.execute(server="file:///etc/passwd", **self.ASKED)

    def test_an_interrupted_graph_stops_the_job(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        management = sys.modules["comfy.model_management"]
        monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", interrupted)
        with pytest.raises(KeyboardInterrupt):
            S2Server.execute(server=address, **self.ASKED)
        assert [(method, path) for method, path, *_ in _Answers.seen][1:] == [("DELETE", "/v1/videos/video_1")]


LOAD_ALONE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("diffusers", "transformers", "pydantic", "accelerate", "yaml"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Missing())
if sys.argv[3] == "hidden":  # as if s2video were not installed in this environment
    import importlib.machinery, importlib.util
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "s2video" else find(name, package)
    class Copied(Missing):
        def find_spec(self, name, path=None, target=None):
            if name == "s2video":
                return importlib.machinery.PathFinder.find_spec(name, [f for f in sys.path if f == sys.argv[2]])
    sys.meta_path.insert(0, Copied())
sys.path.insert(0, sys.argv[1])
import comfy_stub as stub
stub.install()
from pathlib import Path
stub.load_pack(Path(sys.argv[2]))
import s2video
print(Path(s2video.__file__).parent)
"""


@pytest.mark.parametrize("way", ["installed", "copied"])
def test_it_needs_torch_and_numpy_only(tmp_path: Path, way: str) -> None:
    """Without diffusers, transformers and pydantic, in both ways in which docs/comfyui.md installs it."""
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    folder = shutil.copytree(stub.PACK, tmp_path / "custom_nodes" / "s2video")
    if way == "copied":
        shutil.copytree(stub.PACK.parent / "s2video", folder / "s2video", ignore=ignored)
    arguments = [str(Path(__file__).parent), str(folder), "hidden" if way == "copied" else "shown"]
    done = subprocess.run([sys.executable, "-c", LOAD_ALONE, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = folder / "s2video" if way == "copied" else stub.PACK.parent / "s2video"
    assert Path(done.stdout.strip()) == expected


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a checkout of ComfyUI, named by COMFYUI_PATH")
def test_the_core_of_comfyui() -> None:
    script = Path(__file__).with_name("core.py")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, str(script), os.environ["COMFYUI_PATH"]], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
