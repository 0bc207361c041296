"""Feed damaged input to every boundary, for as long as you like; resumable.

    python tools/fuzz.py --minutes 60 --folder runs/fuzz
    python tools/fuzz.py --minutes 5 --targets image LoRA --folder runs/fuzz
    python tools/fuzz.py --folder runs/fuzz --again        # the findings of earlier runs, once more

Each input ends in a result, or in one InputError. Anything else is a finding: another exception, more than 20 s, more
than 1 GiB, a process that dies, a message of many lines. Findings are written to FOLDER/findings, as the input and a
text. Inputs that lead to a new message are kept in FOLDER/corpus and changed further. FOLDER/report.json has the counts
of all runs in this folder. The inputs are tried in a second process, which is started again if one kills it. Exit code
1 if there are findings.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzzing.trial import Outcome, Target, clean, limited_memory, peak, try_input

MAX_CORPUS = 400  # inputs of a target
WORKER_BYTES = 3 << 30  # a worker that has grown to this is replaced, so that the growth of one input can be seen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="corpus, findings, report")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="without it, all of them")
    parser.add_argument("--seed", type=int, help="of the changes; without it, another one in each run")
    parser.add_argument("--again", action="store_true", help="only try the findings of earlier runs once more")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.folder = args.folder.absolute()
    (args.folder / "findings").mkdir(parents=True, exist_ok=True)
    if args.work:
        return Worker(args).work()
    return supervise(args)


def supervise(args: argparse.Namespace) -> int:
    """Start workers until the time is over; write down what killed one."""
    end = time.monotonic() + 60 * args.minutes
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4))
    number = 0
    while True:
        left = (end - time.monotonic()) / 60
        if left <= 0:
            break
        words = ["--work", "--folder", str(args.folder), "--minutes", f"{left:.4f}", "--seed", str(seed + number)]
        words += ["--again"] if args.again else []
        words += ["--targets", *args.targets] if args.targets else []
        with tempfile.TemporaryFile() as errors:
            code = subprocess.run([sys.executable, __file__, *words], stderr=errors).returncode
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 20_000))
            said = errors.read().decode("utf-8", "replace")
        current = args.folder / "current"
        if code not in (0, 3) and not current.exists():
            print(said, file=sys.stderr)  # a worker that could not start
            return 2
        if code not in (0, 3):
            name, _, data = current.read_bytes().partition(b"\n")
            kind = "stuck" if "Timeout" in said else "died"
            write_finding(args.folder, name.decode(), data, Outcome(kind, f"{kind} {code}", f"exit {code}\n{said}"))
        current.unlink(missing_ok=True)
        number += 1
        if args.again or code == 0:
            break
    report = read_report(args.folder)
    tried = sum(counts["inputs"] for counts in report["targets"].values())
    findings = sorted(path.stem for path in (args.folder / "findings").glob("*.txt"))
    report |= {"inputs": tried, "findings": findings}
    write_report(args.folder, report)
    print(f"{tried} inputs of {len(report['targets'])} targets in {report['seconds'] / 60:.1f} minutes; ", end="")
    print(f"{len(findings)} findings" + "".join(f"\n  {name}" for name in findings))
    return 1 if findings else 0


class Worker:
    """Tries inputs, target by target, until the time is over."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = random.Random(args.seed)
        self.report = read_report(args.folder)
        self.targets = all_targets(args.targets)
        self.corpus = {target.name: self._read_corpus(target) for target in self.targets}
        self.seen: dict[str, set[str]] = {target.name: set() for target in self.targets}

    def work(self) -> int:
        start = time.monotonic()
        before = self.report["seconds"]
        stuck = sys.stderr
        with tempfile.TemporaryDirectory(prefix="s2video-fuzz-") as name, limited_memory():
            scratch = Path(name, *"abcdef")  # what leaves its folder stays in ours
            scratch.mkdir(parents=True)
            os.chdir(scratch)
            if self.args.again:
                return self._again(scratch, stuck)
            while time.monotonic() - start < 60 * self.args.minutes:
                for target in self.targets:
                    self._round(target, scratch, stuck)
                self.report["seconds"] = before + time.monotonic() - start
                write_report(self.args.folder, self.report)
                if peak() > WORKER_BYTES:
                    return 3
        return 0

    def _round(self, target: Target, scratch: Path, stuck: Any) -> None:
        corpus = self.corpus[target.name]
        for _ in range(max(1, round(200 / target.cost))):
            first = not self.seen[target.name] and self.rng.random() < 0.5
            data = self.rng.choice(corpus)
            data = data if first else target.mutate(data, self.rng)
            outcome = self._try(target, data, scratch, stuck)
            counts = self.report["targets"].setdefault(target.name, {"inputs": 0, "accepted": 0, "refused": 0})
            counts["inputs"] += 1
            if outcome.is_finding:
                write_finding(self.args.folder, target.name, data, outcome)
                continue
            counts[outcome.kind] += 1
            if outcome.signature not in self.seen[target.name]:
                self.seen[target.name].add(outcome.signature)
                if len(corpus) < MAX_CORPUS and len(data) <= 100_000:
                    corpus.append(data)
                    file = self._corpus_folder(target) / hashlib.sha256(data).hexdigest()[:16]
                    file.write_bytes(data)

    def _try(self, target: Target, data: bytes, scratch: Path, stuck: Any) -> Outcome:
        clean(scratch)
        (self.args.folder / "current").write_bytes(target.name.encode() + b"\n" + data)
        return try_input(target, data, scratch, stuck=stuck)

    def _again(self, scratch: Path, stuck: Any) -> int:
        for text in sorted((self.args.folder / "findings").glob("*.txt")):
            name = text.read_text(encoding="utf-8").splitlines()[0].removeprefix("target: ")
            for target in self.targets:
                if target.name == name:
                    outcome = self._try(target, text.with_suffix(".input").read_bytes(), scratch, stuck)
                    print(f"{text.stem}: {outcome.kind}: {outcome.signature}")
                    if not outcome.is_finding:
                        text.unlink()
                        text.with_suffix(".input").unlink()
        return 0

    def _corpus_folder(self, target: Target) -> Path:
        folder: Path = self.args.folder / "corpus" / target.name.replace("/", "-").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _read_corpus(self, target: Target) -> list[bytes]:
        kept = [file.read_bytes() for file in sorted(self._corpus_folder(target).iterdir())]
        return [*target.seeds, *kept]


def all_targets(names: Sequence[str] | None = None) -> list[Target]:
    """Return the targets of these names, or all. Raises SystemExit for a name that no target has."""
    from fuzzing.text_targets import text_targets

    targets = text_targets()
    if names is None or not set(names) <= {target.name for target in targets}:
        from fuzzing.editorial_targets import editorial_targets  # here, because they import torch
        from fuzzing.file_targets import file_targets
        from fuzzing.server_targets import server_targets
        from fuzzing.study_targets import study_targets

        targets += [*server_targets(), *study_targets(), *editorial_targets(), *file_targets()]
    if unknown := set(names or ()) - {target.name for target in targets}:
        raise SystemExit(
            f"fuzz: no target {min(unknown)!r}; expected of {', '.join(target.name for target in targets)}"
        )
    return [target for target in targets if names is None or target.name in names]


def write_finding(folder: Path, target: str, data: bytes, outcome: Outcome) -> None:
    """Write a finding, once for each place in the code; a smaller input replaces a larger one."""
    name = hashlib.sha256(f"{target}{outcome.kind}{outcome.signature}".encode("utf-8", "replace")).hexdigest()[:10]
    base = folder / "findings" / f"{target.replace('/', '-').replace(' ', '-')}-{outcome.kind}-{name}"
    file = base.with_name(f"{base.name}.input")
    if file.exists() and file.stat().st_size <= len(data):
        return
    file.write_bytes(data)
    text = f"target: {target}\nkind: {outcome.kind}\nsignature: {outcome.signature}\n\n{outcome.detail}\n"
    base.with_name(f"{base.name}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.exists():
        return {"seconds": 0.0, "targets": {}}
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def write_report(folder: Path, report: dict[str, Any]) -> None:
    temporary = folder / "report.json.new"
    temporary.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / "report.json")


if __name__ == "__main__":
    sys.exit(main())
