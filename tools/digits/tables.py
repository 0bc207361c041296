"""The tables of docs/evidence/mnist.md as Markdown, from the records of a results.jsonl."""

from collections.abc import Sequence
from typing import Any

from .design import LAMBDAS, OWN, OWN_LAMBDAS, OWN_PUSHES, PUSHES, helps

Record = dict[str, Any]
_NUMBERS = ("cfg", "deviation", "between_masks", "with_uncond", "common")  # of a network


def report(records: Sequence[Record]) -> str:
    """Return all tables for which there are records, with the verdict."""
    parts = [
        _verdict(records),
        _real(records),
        _screening(records, "plain", LAMBDAS, PUSHES),
        _screening(records, OWN, OWN_LAMBDAS, OWN_PUSHES),
        _networks(records),
        _foretelling(records),
        *_final(records),
        _explored(records),
    ]
    return "\n\n".join(part for part in parts if part)


def _of(records: Sequence[Record], kind: str, **key: Any) -> list[Record]:
    return [r for r in records if r["kind"] == kind and all(r[name] == value for name, value in key.items())]


def _real(records: Sequence[Record]) -> str:
    found = _of(records, "real")
    if not found:
        return ""
    (real,) = found
    return (
        f"Classifier: {real['accuracy']:.1%} of held-out images. Floor, held-out real images: distance "
        f"{real['frechet']:.2f}, precision {real['precision']:.2f}, recall {real['recall']:.2f}."
    )


def _screening(records: Sequence[Record], network: str, lambdas: Sequence[float], pushes: Sequence[float]) -> str:
    by_cell = {(r["cfg_scale"], r["push"]): r for r in _of(records, "screening", network=network)}
    if not by_cell:
        return ""
    rows = ["| λ | " + " | ".join(f"push {push:g}" for push in pushes) + " |", "|" + "---|" * (len(pushes) + 1)]
    for scale in lambdas:
        cells = [by_cell.get((scale, push)) for push in pushes]
        rows.append(f"| {scale:g} | " + " | ".join(map(_screened, cells)) + " |")
    return f"Screening, 2,000 samples of the {network} network of seed 0, Fréchet distance:\n\n" + "\n".join(rows)


def _screened(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record['frechet']:.1f}" + (f" (ω {record['omega']:.2f})" if record["push"] else "")


def _networks(records: Sequence[Record]) -> str:
    found = _of(records, "network")
    if not found:
        return ""
    rows = ["| network | seed | " + " | ".join(_NUMBERS) + " |", "|" + "---|" * (len(_NUMBERS) + 2)]
    rows += [f"| {r['network']} | {r['seed']} | " + " | ".join(f"{r[c]:.3f}" for c in _NUMBERS) + " |" for r in found]
    return "Numbers of the networks:\n\n" + "\n".join(rows)


def _foretelling(records: Sequence[Record]) -> str:
    """Return how the change by S² alone goes with the networks' numbers, and with cond's own distance."""
    changes = {(r["network"], r["seed"]): r["change"][0] for r in _of(records, "final", name="S² alone")}
    distances = {(r["network"], r["seed"]): r["frechet"] for r in _of(records, "final", name="cond")}
    networks = {(r["network"], r["seed"]): r for r in _of(records, "network")}
    keys = [key for key in changes if key in distances and key in networks]
    if len(keys) < 3:
        return ""
    columns = {"cond's own distance": [distances[key] for key in keys]}
    columns |= {name: [networks[key][name] for key in keys] for name in _NUMBERS}
    theirs = [changes[key] for key in keys]
    found = ", ".join(f"{name} {_rank_correlation(values, theirs)}" for name, values in columns.items())
    return f"Rank correlation (Spearman) with the change by S² alone, over {len(keys)} networks: {found}."


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    from scipy import stats

    found = stats.spearmanr(a, b)
    return f"{found.statistic:+.2f} (p = {found.pvalue:.1g})".replace("-", "−")


def _final(records: Sequence[Record]) -> list[str]:
    found = _of(records, "final")
    names = dict.fromkeys(r["network"] for r in found)
    return [_final_of(name, [r for r in found if r["network"] == name]) for name in names]


_COLUMNS = (
    *("cell", "seed", "λ", "push (ω)", "passes", "distance"),
    *("change, %", "against", "precision", "recall", "accuracy"),
)


def _final_of(name: str, records: Sequence[Record]) -> str:
    order = list(dict.fromkeys(r["name"] for r in records))
    rows = [_row(r) for r in sorted(records, key=lambda r: (order.index(r["name"]), r["seed"]))]
    head = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return f"Network: {name}, 10,000 samples\n\n" + "\n".join(head + lines)


def _row(r: Record) -> tuple[str, ...]:
    change = "{:+.1f} ({:+.1f} to {:+.1f})".format(*r["change"]) if "change" in r else ""
    push = f"{r['push']:g} ({r['omega']:.2f})" if r["push"] else "0"
    shares = [f"{r[key]:.3f}" for key in ("precision", "recall", "accuracy")]
    numbers = f"{r['cfg_scale']:g}", push, f"{r['passes']:.1f}", f"{r['frechet']:.2f}"
    return r["name"], str(r["seed"]), *numbers, change, r["against"], *shares


def _explored(records: Sequence[Record]) -> str:
    found = _of(records, "explored")
    if not found:
        return ""
    rows = ["| cell | λ | push (ω) | passes | distance | recall | accuracy |", "|---|---|---|---|---|---|---|"]
    for r in found:
        cells = r["name"], f"{r['cfg_scale']:g}", f"{r['push']:g} ({r['omega']:.2f})", f"{r['passes']:.1f}"
        figures = f"{r['frechet']:.1f}", f"{r['recall']:.2f}", f"{r['accuracy']:.2f}"
        rows.append("| " + " | ".join((*cells, *figures)) + " |")
    return "Explored, 2,000 samples of the plain network of seed 0:\n\n" + "\n".join(rows)


_JUDGED = (
    *("S² alone", "best S²", "autoguidance alone", "S² alone, other's deviation"),
    *("own best S²", "own best S² alone", "own best S², other's deviation", "own best CFG, 22 steps", "cond, 27 steps"),
)


def _verdict(records: Sequence[Record]) -> str:
    lines = []
    for name in dict.fromkeys(r["network"] for r in _of(records, "final")):
        for cell in _JUDGED:
            found = _of(records, "final", network=name, name=cell)
            if changes := [tuple(r["change"]) for r in found]:
                word = "helps" if helps(changes) else "no help shown"
                lines.append(f"| {name} | {cell} | {found[0]['against']} | {len(changes)} | {word} |")
    if not lines:
        return ""
    head = ["| network | cell | held against | seeds | by the rule |", "|---|---|---|---|---|"]
    return "Verdict (a fall of 3 % or more with the interval below 0, in every seed):\n\n" + "\n".join(head + lines)
