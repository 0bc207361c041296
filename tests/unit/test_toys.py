"""Tests of the toys' references: exact velocities, measures, networks without some blocks."""

from pathlib import Path

import pytest
import torch
import toy
from toys.experiment import (
    NUM_STEPS,
    Method,
    Networks,
    best_omegas,
    field_errors,
    guided,
    integrate,
    sample_points,
    train_networks,
)
from toys.mixtures import MIXTURES, ONE_D, Mixture
from toys.network import ResidualNetworks
from toys.point_measures import TRUTH_SEED, interval, measure, true_outside

SEEDS = 3


@pytest.fixture(scope="module")
def networks() -> Networks:
    return train_networks(ONE_D, num_seeds=SEEDS, num_steps=40)


def labels_of(mixture: Mixture, each: int) -> torch.Tensor:
    return torch.arange(mixture.num_classes).repeat_interleave(each).expand(SEEDS, -1)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("sigma", [0.2, 0.7])
def test_the_exact_velocity_is_the_best_prediction(mixture: Mixture, sigma: float) -> None:
    """It is the conditional mean of ε − x₀, so the residual is uncorrelated with any function of x."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(mixture.num_classes).repeat(60_000 // mixture.num_classes)
    clean = mixture.draw(labels, generator)
    noise = torch.randn(clean.shape, generator=generator)
    x = (1 - sigma) * clean + sigma * noise
    rest = (noise - clean) - mixture.velocity(x, sigma, labels)
    for k in range(mixture.num_classes):
        mine = labels == k
        scale = rest[mine].std() * mine.sum() ** -0.5
        for probe in (torch.ones_like(x[mine]), (x[mine] - x[mine].mean(dim=0)) / x[mine].std(), x[mine].sin()):
            assert ((rest[mine] * probe).mean(dim=0).abs() < 5 * scale).all()


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_the_exact_velocity_leads_to_the_truth(mixture: Mixture) -> None:
    labels = labels_of(mixture, 2000)
    points = integrate(lambda x, s, step: mixture.velocity(x, float(s), labels), mixture, labels, seed=1)
    got = measure(points, labels, mixture)
    assert got.mode_shift.max() < 0.15 and (got.spread - 1).abs().max() < 0.06
    assert got.wasserstein.max() < 0.15 and (got.outside - true_outside(mixture)).abs().max() < 0.01


def test_measures_see_what_they_are_for() -> None:
    labels = labels_of(ONE_D, 1000)
    truth = ONE_D.draw(labels, torch.Generator().manual_seed(TRUTH_SEED))
    assert measure(truth, labels, ONE_D).wasserstein.max() == 0
    moved = measure(truth + torch.where(labels == 0, -1.0, 1.0).unsqueeze(-1), labels, ONE_D)
    assert torch.allclose(moved.wasserstein, torch.ones(SEEDS), atol=1e-3)
    assert torch.allclose(moved.mode_shift, torch.ones(SEEDS), atol=0.1)
    assert measure(torch.full_like(truth, 7.5), labels, ONE_D).outside.min() == 1
    assert measure(ONE_D.centers[labels] + 0.0, labels, ONE_D).spread.max() == 0
    half = interval(torch.tensor([1.0, 2.0, 3.0])).half
    assert half == pytest.approx(4.303 * 1.0 / 3**0.5, rel=1e-3)  # t of 2 degrees of freedom


def test_a_block_left_out_adds_nothing_and_only_to_its_seed() -> None:
    torch.manual_seed(0)
    networks = ResidualNetworks(SEEDS, 1, 2, num_blocks=4, width=16).eval().requires_grad_(False)
    x, sigma = torch.randn(SEEDS, 5, 1), torch.rand(SEEDS, 5)
    labels = torch.zeros(SEEDS, 5, dtype=torch.long)
    whole = networks(x, sigma, labels)
    one = networks(x, sigma, labels, [(), (2,), (0, 1)])
    assert torch.equal(one[0], whole[0]) and not torch.allclose(one[1], whole[1]) and not torch.allclose(one[2], one[1])
    networks.outer[2].weight.zero_()
    networks.outer[2].bias.zero_()
    assert torch.equal(networks(x, sigma, labels, [(2,)] * SEEDS), networks(x, sigma, labels))


def test_s2_acts_inside_the_window_by_equation_4(networks: Networks) -> None:
    labels = labels_of(ONE_D, 4)
    x, sigma = torch.randn(SEEDS, 8, 1), torch.full((SEEDS, 8), 0.5)
    cfg, s2 = Method("CFG", 3.0), Method("S²", 3.0, 0.25)
    assert torch.equal(guided(networks, s2, x, sigma, labels, 0), guided(networks, cfg, x, sigma, labels, 0))
    step = NUM_STEPS // 2
    double = Method("S²", 3.0, 0.5)
    base, once, twice = (guided(networks, m, x, sigma, labels, step) for m in (cfg, s2, double))
    assert (once - base).abs().max() > 1e-4 and torch.allclose(twice - base, 2 * (once - base), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_no_omega_is_nearer_to_the_exact_field_than_the_best(networks: Networks, scale: float) -> None:
    """Compare with the error of the field itself, around the best ω over all seeds."""
    omegas, left = best_omegas(networks, ONE_D, scale, (0.5,), seed=0)
    assert ((left > 0) & (left <= 1)).all()
    for seed in range(SEEDS):
        best = float(omegas[seed])
        errors = [
            float(field_errors(networks, ONE_D, Method("S²", scale, omega), (0.5,), seed=0)[seed])
            for omega in (best - 0.2, best, best + 0.2, 1e-9)
        ]
        assert errors[1] < min(errors[0], errors[2])
        assert errors[1] / errors[3] == pytest.approx(float(left[seed]), rel=1e-4)


def test_training_teaches(networks: Networks) -> None:
    fresh = train_networks(ONE_D, num_seeds=SEEDS, num_steps=10)
    errors = [field_errors(n, ONE_D, Method("cond"), (0.3, 0.7), seed=0).mean() for n in (networks, fresh)]
    assert errors[0] < 0.8 * errors[1]
    labels = labels_of(ONE_D, 200)
    points = sample_points(networks, ONE_D, Method("cond"), labels, seed=0)
    assert measure(points, labels, ONE_D).mode_shift.max() < 2  # the distance of the modes is 8


def test_the_tool_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "METHODS", toy.METHODS[:2])
    monkeypatch.setattr(toy, "MIXTURES", {"1d": ONE_D})
    monkeypatch.setattr(toy, "LAMBDAS", (1.0,))
    monkeypatch.setattr(toy, "OMEGAS", (0.0, 0.5))
    monkeypatch.setattr(toy, "_draw", lambda *_: None)
    arguments = ["toy.py", "--work", str(tmp_path), "--seeds", "2", "--points", "20", "--long", "4", "--short", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    toy.main()
    results = tmp_path / "results.jsonl"
    first, table = results.read_bytes(), capsys.readouterr().out
    assert "| CFG |" in table and (tmp_path / "wasserstein.png").stat().st_size > 1000
    lines = first.splitlines(keepends=True)
    results.write_bytes(b"".join(line for line in lines if b'"1d long CFG 3 0"' not in line))
    monkeypatch.setattr(toy, "train_networks", None)  # they are kept
    toy.main()
    made_again = results.read_bytes().splitlines(keepends=True)
    assert sorted(made_again) == sorted(lines) and capsys.readouterr().out == table


def test_the_page_has_the_tables_of_the_kept_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/evidence/toys.md").read_text()
    kept = next(word for word in page.split() if word.startswith("tools/results/"))
    monkeypatch.setattr("sys.argv", ["toy.py", "--show", str(root / kept)])
    toy.main()
    assert capsys.readouterr().out in page
