"""The parts of tools/mnist.py: data, guided sampling, distances, the rule, and resuming."""

import json
from pathlib import Path

import mnist
import numpy as np
import pytest
import torch
from digits import data, design, distances
from digits.guided import BATCH, Method, sample
from digits.tables import report
from digits.transformer import DigitTransformer, Shape
from json_lines import read_lines

from s2video.errors import InputError


def _write_idx(folder: Path, name: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    words = [2051, len(labels), 28, 28]
    header = b"".join(word.to_bytes(4, "big") for word in words)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
    header = b"".join(word.to_bytes(4, "big") for word in (2049, len(labels)))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """Images whose brightness tells the class."""
    for name, count in (("train", 2000), ("t10k", 2000)):
        labels = np.arange(count) % 10
        noise = np.random.default_rng(count).integers(0, 20, (count, 28, 28))
        _write_idx(tmp_path, name, labels[:, None, None] * 20 + noise, labels)
    return tmp_path


@pytest.fixture(scope="module")
def network() -> DigitTransformer:
    torch.manual_seed(0)
    network = DigitTransformer(Shape(blocks=4, width=16)).eval().requires_grad_(False)
    for layer in (network.project, network.modulate[1]):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return network


def test_idx_files_are_read(digits_folder: Path) -> None:
    found = data.load(digits_folder)
    assert found.train.images.shape == (2000, 1, 16, 16) and found.train.labels[13] == 3
    assert found.train.images.min() == pytest.approx(data.LOW) and found.train.images.max() <= data.HIGH
    bright = found.train.images[9] - found.train.images[0]
    assert bright[0, 1:15, 1:15].mean() > 0 and (bright[0, 0] == 0).all()  # framed
    images = digits_folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(InputError, match="files differ"):
        data.load(digits_folder)
    images.write_bytes(b"no IDX file")
    with pytest.raises(InputError, match="magic number"):
        data.load(digits_folder)
    with pytest.raises(InputError, match="expected IDX files"):
        data.load(digits_folder / "nothing")


def test_a_push_moves_each_sample_by_its_share_of_cond(network: DigitTransformer) -> None:
    """With one Euler step, the velocity differs from cond's by push · |cond|, whatever the direction."""
    plain = sample(network, Method(steps=1, window=(0.0, 1.0)), count=BATCH, noise_seed=1)
    for direction in ("sub", "other", "weak"):
        method = Method(push=0.1, steps=1, window=(0.0, 1.0), direction=direction)
        weak = DigitTransformer(Shape(blocks=2, width=16)).requires_grad_(False)
        torch.nn.init.normal_(weak.project.weight, std=0.1)
        pushed = sample(network, method, count=BATCH, noise_seed=1, weak=weak)
        noise = torch.randn(BATCH, 1, 16, 16, generator=torch.Generator().manual_seed(1_000_003))
        inside = (_inside(plain.images) & _inside(pushed.images)).flatten(1)
        moved = ((pushed.images - plain.images).flatten(1) * inside).norm(dim=1)
        bound = 0.1 * network(noise, torch.ones(BATCH), plain.labels).flatten(1).norm(dim=1)
        assert (moved <= bound * 1.0001).all() and moved.mean() > 0.3 * bound.mean()
        assert pushed.mean_omega > 0


def _inside(images: torch.Tensor) -> torch.Tensor:
    return (images > data.LOW) & (images < data.HIGH)


def test_a_sub_pass_starts_where_cond_left_off(network: DigitTransformer) -> None:
    x, t, labels = torch.randn(3, 1, 16, 16), torch.rand(3), torch.tensor([1, 2, 10])
    cond, trace = network.traced(x, t, labels)
    assert torch.equal(cond, network(x, t, labels))
    for mask in ((1,), (2, 3), (0, 3)):
        assert torch.equal(network.resumed(trace, mask), network(x, t, labels, mask))
        assert not torch.equal(network.resumed(trace, mask), cond)


def test_reuse_skips_passes(network: DigitTransformer) -> None:
    exact, fast = Method(cfg_scale=2.0, push=0.1), Method(cfg_scale=2.0, push=0.1, reuse="fast")
    assert fast.passes(4) < 0.7 * exact.passes(4)
    images = [sample(network, method, count=BATCH, noise_seed=1).images for method in (exact, fast)]
    assert 0 < (images[0] - images[1]).abs().mean() < 0.5 * images[0].std()


def test_lambda_one_and_no_push_are_cond(network: DigitTransformer) -> None:
    cond = sample(network, Method(), count=BATCH, noise_seed=3)
    assert not torch.equal(cond.images, sample(network, Method(cfg_scale=2.0), count=BATCH, noise_seed=3).images)
    assert torch.equal(cond.images, sample(network, Method(window=(0.4, 0.5)), count=BATCH, noise_seed=3).images)
    assert cond.labels[:11].tolist() == [*range(10), 0]


def test_passes_are_counted() -> None:
    assert Method().passes(12) == 16 and Method(cfg_scale=2.0).passes(12) == 32
    assert Method(cfg_scale=2.0, push=0.1).passes(12) == pytest.approx(32 + 12 * 11 / 12)
    assert sum(Method(window_in="noise", window=(0.3, 0.9)).active(step) for step in range(16)) == 10


def test_the_frechet_distance_of_gaussians() -> None:
    a = distances.Moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = distances.Moments(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert distances.frechet(a, b) == pytest.approx(9 + 1 + 0 + 4)  # |m|² + Σ (σ_a − σ_b)²
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-9)
    rows = np.random.default_rng(0).normal(size=(50, 3))
    twice = distances.moments(rows, np.full(50, 2.0))
    assert np.allclose(twice.mean, rows.mean(0)) and np.allclose(twice.covariance, np.cov(rows.T), rtol=0.03)


def test_paired_changes_precision_and_recall() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(1000, 4))
    theirs = rng.normal(size=(1000, 4)) + 0.5
    ours = theirs - 0.1
    change, low, high = distances.paired_change(ours, theirs, distances.moments(real))
    assert low < change < high < 0
    same = distances.paired_change(theirs, theirs, distances.moments(real))
    assert same == pytest.approx((0, 0, 0), abs=1e-9)
    assert distances.precision_and_recall(real, real) == (1.0, 1.0)
    few_modes = np.repeat(real[:10], 100, 0) + rng.normal(size=(1000, 4)) * 1e-3
    precision, recall = distances.precision_and_recall(few_modes, real)
    assert precision == 1.0 and recall < 0.1


def test_the_rule_needs_every_seed() -> None:
    assert design.helps([(-4.0, -5.0, -3.0), (-3.0, -5.0, -0.1)])
    assert not design.helps([(-4.0, -5.0, -3.0), (-2.9, -5.0, -0.1)])
    assert not design.helps([(-4.0, -5.0, 0.1)])
    assert not design.helps([])


def test_cells_are_twelve_with_known_names() -> None:
    cells = design.final_cells(design.Best(1.6, (1.5, 0.05), 0.2))
    names = [cell.name for cell in cells]
    assert len(set(names)) == 12 and {cell.against for cell in cells} <= {*names, ""}
    assert all(names.index(cell.against) < names.index(cell.name) for cell in cells if cell.against)
    on_all = [cell for cell in cells if cell.on_all]
    assert len(on_all) == 5 and {cell.against for cell in on_all} <= {*(cell.name for cell in on_all), ""}
    by_name = {cell.name: cell.method for cell in cells}
    more = by_name["best CFG, 22 steps"].passes(12) - by_name["best S²"].passes(12)
    assert 0 <= more < 2  # passes: a step of CFG has two
    own = design.own_cells(design.Best(1.1, (1.05, 0.1), 0.3))
    assert {cell.against for cell in own} <= {*names, *(cell.name for cell in own)}
    assert own[-1].method.passes(12) == pytest.approx(by_name["S² alone"].passes(12))


def test_a_run_resumes_and_shows(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run at the smallest size; the second call measures nothing again, and the tables are the same."""
    recipe = mnist.NETWORKS["plain"].__class__(Shape(blocks=3, width=16), steps=10)
    monkeypatch.setattr(mnist, "NETWORKS", {"plain": recipe})
    monkeypatch.setattr(mnist, "OWN", "plain")
    monkeypatch.setattr(mnist, "TRAINING_SEEDS", (0,))
    monkeypatch.setattr(mnist, "FINAL_COUNT", BATCH)
    monkeypatch.setattr(mnist, "SCREENING_COUNT", BATCH)
    monkeypatch.setattr(mnist, "LEAST_ACCURACY", 0.0)
    monkeypatch.setattr(mnist, "screening", lambda *_: [Method(), Method(push=0.1)])
    best = design.Best(1.0, (1.0, 0.1), 0.1)
    cells = [cell for cell in design.final_cells(best) if cell.on_all]
    monkeypatch.setattr(mnist, "own_cells", lambda chosen: [_quick(cell) for cell in design.own_cells(chosen)])
    monkeypatch.setattr(mnist, "final_cells", lambda *_: [_quick(cell) for cell in cells])
    monkeypatch.setattr(mnist, "explored", lambda *_: [_quick(cell) for cell in design.explored(best)[:1]])
    monkeypatch.setattr(mnist, "train_classifier", lambda train, path: _classifier(train, path))
    work = tmp_path / "work"
    command = ["--work", str(work), "--data", str(digits_folder)]
    assert mnist.main([*command, "--minutes", "0"]) == 0
    assert "run the same command" in capsys.readouterr().err
    assert mnist.main(command) == 0
    first = (work / "results.jsonl").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "Network: plain, 10,000 samples" in printed and "| plain | best S² | best CFG | 1 |" in printed
    assert mnist.main(command) == 0
    assert (work / "results.jsonl").read_text(encoding="utf-8") == first
    assert mnist.main(["--show", str(work / "results.jsonl")]) == 0
    assert capsys.readouterr().out.strip().endswith(printed[printed.index("Classifier:") :].strip())
    kinds = [json.loads(line).get("kind") for line in first.splitlines()]
    assert kinds == [None, "real", "screening", "screening", "explored", "network", *["final"] * 11]


def _quick(cell: design.Cell) -> design.Cell:
    return design.Cell(cell.name, design.replace(cell.method, steps=2, window=(0.0, 1.0)), cell.against, cell.on_all)


def _classifier(train: data.Digits, path: Path) -> torch.nn.Module:
    from digits.training import train_classifier

    return train_classifier(train, path, steps=5)


def test_the_page_shows_the_stored_results() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "evidence" / "mnist.md").read_text(encoding="utf-8")
    assert report(read_lines(root / "tools" / "results" / "mnist.jsonl")[1]) in page
