"""Tests that a new family needs a folder (tests/toy_family), a line in the registry, a config and a test entry."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from tiny import MAX_SEQUENCE_LENGTH, PROMPT, SIZE
from toy_family.blocks import ToyBlockModel
from toy_family.family import Toy
from toy_family.module import ToyTransformer3DModel

from s2video.cli.main import main
from s2video.engine.engine import Engine
from s2video.engine.statement import Batch
from s2video.guidance.masks import step_masks
from s2video.integrations.blocks import check_transformer
from s2video.integrations.structure import block_lists, count_blocks
from s2video.models import registry
from s2video.models.base import Conditioning
from s2video.models.checkpoint import Checkpoint, open_checkpoint
from s2video.models.recipes import load_config
from s2video.parallel.mesh import Mesh
from s2video.records.sidecar_model import read_sidecar
from s2video.sampling.forward import predict


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """Add the line to the registry, and the class that diffusers would have."""
    registry.FAMILIES.append(Toy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers, "ToyTransformer3DModel", ToyTransformer3DModel, raising=False)
        yield
    registry.FAMILIES.remove(Toy)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("toy") / "toy"))
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    ToyTransformer3DModel().save_pretrained(folder / "transformer")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "ToyPipeline", "transformer": ["diffusers", "ToyTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def config_file(checkpoint: Path) -> Path:
    sampling = {**SIZE, "num_inference_steps": 4, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    values = {"model": {"path": str(checkpoint), "device": "cpu"}, "sampling": sampling}
    path = checkpoint.parent / "toy.yaml"
    path.write_text(yaml.safe_dump(values | {"guidance": {"drop_count": 1, "window": [0, 1]}}))
    return path


def test_predictions_are_those_of_the_module(checkpoint: Path) -> None:
    module = ToyTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer")
    latents, text = torch.randn(1, 16, 2, 4, 5), torch.randn(1, 7, 128)
    time = torch.tensor([300.0])
    with torch.no_grad():
        mesh, model = Mesh(torch.device("cpu")), ToyBlockModel(module)
        made = predict(model, latents, time, mesh=mesh, cond=Conditioning(text), masks=[(2,)])
        assert torch.equal(made.cond, module(latents, time, text)[0])
        del module.blocks[2]
        assert torch.equal(made.subs[0], module(latents, time, text)[0])


def test_the_engine_gives_the_latents_of_a_plain_loop(checkpoint: Path, config_file: Path) -> None:
    config = load_config(config_file)
    engine = Engine(config, progress="none")
    got = engine.sample([PROMPT], [3])
    opened = open_checkpoint(str(checkpoint))
    module = ToyTransformer3DModel.from_pretrained(checkpoint, subfolder="transformer").eval()
    latents, scheduler = engine._noise([3]), engine._timed_scheduler()
    cond, uncond = (told.text for told in engine._encoders.text(Batch([PROMPT], [3], "", 3), config))
    guidance, blocks = config.guidance, list(module.blocks)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            time = t[None]
            module.blocks = torch.nn.ModuleList(blocks)
            on, off = (module(latents, time, text)[0] for text in (cond, uncond))
            (mask,) = step_masks(guidance.mask_spec(), num_blocks=4, seed=3, step=step, num_steps=4)
            module.blocks = torch.nn.ModuleList(block for i, block in enumerate(blocks) if i not in mask)
            sub = module(latents, time, cond)[0]
            guided = off + guidance.cfg_scale * (on - off) - guidance.s2_scale * (sub - on)
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    torch.testing.assert_close(got, latents, atol=1e-5, rtol=0)
    assert opened.info.num_blocks == 4


def test_commands_and_plugin_know_it(
    checkpoint: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "toy.mp4"
    assert main(["generate", "--config", str(config_file), "--prompt", PROMPT, "--output", str(output), "--plain"]) == 0
    assert read_sidecar(output.with_suffix(".json")).num_blocks == 4
    assert main(["plan", "--config", str(config_file), "--world", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["num_blocks"] == 4
    opened = Checkpoint(checkpoint)
    costs = registry.read_costs(opened.config("transformer").values)
    counted = costs.root_parameters() + sum(map(costs.block_parameters, range(costs.num_blocks)))
    assert opened.num_parameters("transformer") == counted
    module = ToyTransformer3DModel()
    check_transformer(module, load_config(config_file).guidance.mask_spec())
    assert block_lists(module) == Toy.block_lists and count_blocks(module) == 4
