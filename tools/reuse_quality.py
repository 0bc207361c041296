"""Compares what reuse, fewer steps, CFG and S² in place of CFG get right in held-out captions of the embedded model.

    python tools/reuse_quality.py --json tools/results/reuse-quality.jsonl    # takes an hour or two, and resumes
    python tools/reuse_quality.py --show tools/results/reuse-quality.jsonl

Every way makes the same clips from the same noise. `shapes/detector.py` reads them; the figure is the share of
attributes that are right. Differences are paired by clip, with 95 % intervals of a bootstrap over captions.

Decided before the first run: 128 clips, half of them of two things. If a clip's difference between two ways has a
standard deviation of 0.12, the interval's half-width is 2.1 points; so a reuse that changes nothing is shown to lose
less than 3 points. Named before: `light` and `fast` less exact at λ 2, `deviation` less exact at λ 5. All other rows
are exploratory. Exit codes: 0 done, 2 the input cannot be used.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evaluate import Clip, draw_clips, generate, positive_number
from json_lines import lines_path, read_lines, write_lines
from reuse_error import passes_over_cfg

from s2video.engine.engine import Engine
from s2video.errors import InputError
from s2video.models.recipes import load_model_config
from s2video.records.sidecar import versions
from s2video.study.bootstrap import Bootstrap, Sample
from s2video.system.progress import Progress

STEPS, LEAST = 30, -3.0  # the lower bound, in points, above which a named way loses nothing that matters


class Way(NamedTuple):
    """One way to make the clips.

    Attributes:
        against: the name of the way that it is held against.
        named: whether the rule was set for it beforehand.
    """

    name: str
    guidance: Mapping[str, Any]
    steps: int = STEPS
    against: str = "λ 2, exact"
    named: bool = False


WAYS = (
    Way("λ 2, exact", {"cfg_scale": 2.0}, against=""),
    Way("λ 2, fast", {"cfg_scale": 2.0, "reuse": "fast"}, named=True),
    Way("λ 2, light", {"cfg_scale": 2.0, "reuse": "light"}, named=True),
    Way("λ 5, exact", {"cfg_scale": 5.0}, against=""),
    Way("λ 5, deviation", {"cfg_scale": 5.0, "reuse": "deviation"}, against="λ 5, exact", named=True),
    Way("λ 2, CFG", {"cfg_scale": 2.0, "s2_scale": 0.0}),
    Way("λ 2, CFG, 19 steps", {"cfg_scale": 2.0, "s2_scale": 0.0}, steps=19, against="λ 2, fast"),
    Way("λ 2, CFG, fast", {"cfg_scale": 2.0, "s2_scale": 0.0, "reuse": "fast"}, against="λ 2, fast"),
    Way("λ 1, cond alone", {"cfg_scale": 1.0, "s2_scale": 0.0}, against="λ 2, CFG"),
    Way("λ 1, S² alone, push 0.1", {"cfg_scale": 1.0, "s2_push": 0.1}, against="λ 1, cond alone"),
    Way("λ 1, S² alone, push 0.3", {"cfg_scale": 1.0, "s2_push": 0.3}, against="λ 1, cond alone"),
    Way("λ 2, deviation", {"cfg_scale": 2.0, "reuse": "deviation"}),
    Way("λ 5, light from 0.4", {"cfg_scale": 5.0, "reuse": {"preset": "light", "start": 0.4}}, against="λ 5, exact"),
)


def draw(count: int) -> list[Clip]:
    """Return the clips, first those of one thing."""
    counts = {1: (count + 1) // 2, 2: count // 2}
    return [
        clip
        for things, number in counts.items()
        for clip in draw_clips("reuse quality", count=number, num_things=things, seed=0, first_seed=300_000 * things)
    ]


def measure(engine: Engine, clips: Sequence[Clip], batch: int, path: Path, header: Mapping[str, Any]) -> list[Any]:
    """Make the clips that the file lacks, a record for each batch, which is written at once; return all records."""
    records = read_lines(path)[1] if path.is_file() else []
    done = {(record["way"], record["first"]) for record in records}
    starts = range(0, len(clips), batch)
    with Progress("batches", "auto") as progress:
        for way in WAYS:
            config = engine.config.patched({"sampling.num_inference_steps": way.steps})
            changed = engine.with_config(config).with_guidance(**way.guidance)
            passes = passes_over_cfg(changed, clips[0].seed) * way.steps / STEPS
            for start in starts:
                if (way.name, start) in done:
                    continue
                results = generate(changed, clips[start : start + batch], batch=batch, on_batch=lambda: None)
                right = [round(float(result.scores["all"]), 4) for result in results]
                records.append({"way": way.name, "first": start, "passes": round(passes, 4), "right": right})
                write_lines(path, header, records)
                progress(len(records), len(WAYS) * len(starts))
    return records


def describe(records: Sequence[Mapping[str, Any]], batch: int) -> str:
    """Return the table, in Markdown, of the ways whose clips are all there."""
    by_way = {way.name: [r for r in records if r["way"] == way.name] for way in WAYS}
    whole = max(len(rows) for rows in by_way.values())
    rights = {
        name: np.concatenate([r["right"] for r in sorted(rows, key=lambda r: r["first"])])
        for name, rows in by_way.items()
        if len(rows) == whole
    }
    count = len(next(iter(rights.values())))
    bootstrap, captions = Bootstrap(count), np.arange(count)
    lines = [
        "| way | passes / CFG | attributes right, % | less | difference, points (95 %) | by the rule |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        if way.name not in rights:
            continue
        mean = bootstrap.mean(Sample(rights[way.name], captions))
        cells = [way.name, f"{by_way[way.name][0]['passes']:.3f}", "{:.1f} ({:.1f} to {:.1f})".format(*_percent(mean))]
        if way.against in rights:
            difference = _percent(
                bootstrap.difference(Sample(rights[way.name], captions), Sample(rights[way.against], captions))
            )
            verdict = ("holds" if difference[1] > LEAST else "not shown") if way.named else ""
            cells += [way.against, "{:+.1f} ({:+.1f} to {:+.1f})".format(*difference), verdict]
        lines.append("| " + " | ".join([*cells, *[""] * (6 - len(cells))]) + " |")
    return f"{count} clips, batches of {batch} share their masks.\n\n" + "\n".join(lines)


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--clips", type=positive_number, default=128, help="held-out captions, half of them of two things")
    add("--batch", type=positive_number, default=8, help="clips that are made together; they share masks")
    add("--json", type=lines_path, metavar="FILE.jsonl", help="the results; those found there are not made again")
    add("--show", type=lines_path, metavar="FILE.jsonl", help="print the table of such a file instead")
    args = parser.parse_args(argv)
    if (args.json is None) == (args.show is None):
        parser.error("expected either --json or --show")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.show is not None:
            header, records = read_lines(args.show)
        else:
            config = load_model_config("shapes-wan", {"sampling.num_inference_steps": STEPS}).config
            clips = draw(args.clips)
            header = {"config": config.model_dump(mode="json"), "batch": args.batch, "versions": versions()}
            header["captions"] = [clip.caption for clip in clips]
            if args.json.is_file() and read_lines(args.json)[0] != header:
                raise InputError(f"{args.json}: made with other settings or versions; give another name, or delete it")
            records = measure(Engine(config, progress="none"), clips, args.batch, args.json, header)
        print(describe(records, header["batch"]))
    except InputError as error:
        print(f"reuse_quality: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
