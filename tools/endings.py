"""How runs end: each way to lose a rank, in each phase, by each way to start a run. Prints a table in Markdown.

    python tools/endings.py -o tools/results/endings.jsonl    # takes an hour on two cores
    python tools/endings.py --only torchrun kill              # takes minutes: rows that have all these words

A run of two ranks makes a small video with the embedded model. At the start of a phase one rank, rank 1 or the one that
does the work, is killed, stopped, put to sleep, or runs out of memory. Measured are the seconds from there to the first
line of s2video that says so, and to the end of the last process. A batch makes the video again, so it ends with it.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PROMPT = "a large red circle moving left on a gray background"
SETTINGS = ["sampling.num_inference_steps=12", "sampling.num_frames=17"]
PHASES = {  # where each begins: module, class, method
    "loading": ("s2video.engine.engine", "Engine", "_load_encoders"),
    "encoding text": ("s2video.models.text", "TextEncoder", "__call__"),
    "denoising": ("s2video.sampling.denoiser", "Denoiser", "__call__"),
    "decoding": ("s2video.decoding.decoder", "FrameDecoder", "_chunks"),
    "encoding video": ("s2video.media.ffmpeg", "Ffmpeg", "send"),
}
WAYS = ("kill", "stop", "sleep", "memory")
MOST_SECONDS = 900.0

# Every Python process of a run executes this first. The file `fault` appears with the fault, which comes once.
SITE = """
import importlib.abc, importlib.util, json, os, signal, sys, time

way, phase, victim, module, name, method, folder = json.loads(os.environ["S2VIDEO_FAULT"])
fault_file = os.path.join(folder, "fault")

def fault():
    try:
        os.close(os.open(fault_file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if way in ("kill", "stop"):
        os.kill(os.getpid(), getattr(signal, f"SIG{way.upper()}"))
    if way == "sleep":
        time.sleep(100_000)
    if way == "memory":
        raise MemoryError
    if way in ("encoder stop", "encoder kill"):
        os.kill(own_encoder[0], getattr(signal, f"SIG{way.split()[1].upper()}"))

own_encoder = []

def patch(loaded):
    owner = getattr(loaded, name)
    before, calls = getattr(owner, method), []

    def faulty(self, *arguments, **more):
        calls.append(1)
        if len(calls) == (5 if phase == "denoising" else 1) and os.environ.get("RANK", "0") == victim:
            if way.startswith("encoder"):
                own_encoder.append(self._process.pid)
            fault()
        return before(self, *arguments, **more)

    setattr(owner, method, faulty)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(loaded):
            execute(loaded)
            patch(loaded)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class Case:
    """A way to lose a process, the phase in which it happens, and how the run is started."""

    way: str
    phase: str
    start: str

    @property
    def words(self) -> str:
        return f"{self.start}: {self.way}, {self.phase}"


@dataclass(frozen=True)
class Ending:
    """What was seen after a fault, with seconds from it. `line` is the last one of s2video that says why."""

    way: str
    phase: str
    start: str
    line_seconds: float | None
    end_seconds: float
    code: int
    line: str


def cases() -> Iterator[Case]:
    """Yield all cases, the ones that wait longest first."""
    for way in ("sleep", "stop", "memory", "kill"):
        for phase in PHASES:
            yield Case(way, phase, "torchrun")
        for phase in ("loading", "denoising", "encoding video"):
            yield Case(way, phase, "batch --nproc 1")
        for start in ("launch", "batch --nproc 2"):
            yield Case(way, "denoising", start)
    for way in ("encoder stop", "encoder kill"):
        yield Case(way, "encoding video", "generate")
    for way in ("stop the host", "stop the host with the store"):
        yield Case(way, "denoising", "two torchruns")
    for way in ("kill torchrun", "SIGHUP torchrun", "SIGTERM torchrun"):
        yield Case(way, "denoising", "torchrun")
    for way in ("kill launch", "SIGHUP launch"):
        yield Case(way, "denoising", "launch")
    for way in ("kill batch", "SIGHUP batch"):
        yield Case(way, "denoising", "batch --nproc 2")
    for way in ("kill generate", "SIGHUP generate"):
        yield Case(way, "encoding video", "generate")


def run(case: Case) -> Ending:
    """Start a run, wait for its fault, and for the end of all its processes."""
    with tempfile.TemporaryDirectory(prefix="s2video-endings-") as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        log = folder / "log.txt"
        with log.open("wb") as file:
            tops = [
                subprocess.Popen(
                    command, stdout=file, stderr=file, env=_environment(case, folder), start_new_session=True
                )
                for command in _commands(case, folder)
            ]
        try:
            _wait(lambda: (folder / "fault").exists(), tops, log)
            fault_at = time.monotonic()
            processes = _tagged(folder)
            _strike(case, tops, processes)
            return _ending(case, fault_at, tops, log, folder)
        finally:
            for pid in _tagged(folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for top in tops:
                top.wait()


def _commands(case: Case, folder: Path) -> list[list[str]]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    output = str(folder / "made" / "a.mp4")
    arguments = ["--model", "shapes-wan", "--prompt", PROMPT, "--output", output, "--plain", *sets]
    python = [sys.executable, "-m"]
    torchrun = [*python, "torch.distributed.run"]
    rank = ["-m", "s2video", "generate", *arguments]
    if case.start == "generate":
        return [[*python, "s2video", "generate", *arguments]]
    if case.start == "torchrun":
        return [[*torchrun, "--standalone", "--nproc-per-node", "2", *rank]]
    if case.start == "launch":
        return [[*python, "s2video", "launch", "--nproc", "2", "t2v", *arguments]]
    if case.start == "two torchruns":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meet = [
                "--rdzv-backend",
                "c10d",
                "--rdzv-id",
                "two",
                "--rdzv-endpoint",
                f"127.0.0.1:{probe.getsockname()[1]}",
            ]
        nodes = ["--nnodes", "2", "--nproc-per-node", "1", *meet]
        hosts = [["--rdzv-conf", f"is_host={1 - number}"] for number in range(2)]
        return [[*torchrun, *hosts[number], *nodes, *rank] for number in range(2)]
    run_file = folder / "run.yaml"
    shots = {"model": {"path": "shapes-wan"}, "folder": str(folder / "made"), "shots": [PROMPT]}
    run_file.write_text(json.dumps(shots), encoding="utf-8")
    return [[*python, "s2video", "batch", str(run_file), "--plain", *case.start.split()[1:], *sets]]


def _environment(case: Case, folder: Path) -> dict[str, str]:
    """Return the environment of a run: one thread for each process, and what `SITE` reads."""
    victim = "0" if case.phase == "encoding video" or case.start == "batch --nproc 1" else "1"
    fault = [case.way, case.phase, victim, *PHASES[case.phase], str(folder)]
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "S2VIDEO_FAULT": json.dumps(fault)}


def _strike(case: Case, tops: list[subprocess.Popen[bytes]], processes: list[int]) -> None:
    """Do what the rank itself cannot do."""
    if case.way.startswith("stop the host"):
        top = tops["store" not in case.way]
        for pid in [pid for pid in processes if pid == top.pid or _parent(pid) == top.pid]:
            os.kill(pid, signal.SIGSTOP)
        return
    first, _, second = case.way.partition(" ")
    if second in ("torchrun", "launch", "batch", "generate"):
        tops[0].send_signal(signal.SIGKILL if first == "kill" else signal.Signals[first])


def _ending(case: Case, fault_at: float, tops: list[subprocess.Popen[bytes]], log: Path, folder: Path) -> Ending:
    line_seconds = None
    stopped_host = tops["store" not in case.way].pid if case.way.startswith("stop the host") else None
    while time.monotonic() < fault_at + MOST_SECONDS:
        if line_seconds is None and _lines(log):
            line_seconds = round(time.monotonic() - fault_at, 1)
        left = [pid for pid in _tagged(folder) if stopped_host not in (pid, _parent(pid))]
        if not left and all(top.poll() is not None for top in tops if top.pid != stopped_host):
            break
        time.sleep(0.1)
    lines = [line.replace(str(folder), "FOLDER") for line in _lines(log)]
    top = next(top for top in tops if top.pid != stopped_host)
    code = top.poll()
    end = round(time.monotonic() - fault_at, 1)
    return Ending(*asdict(case).values(), line_seconds, end, -1 if code is None else code, " / ".join(lines) or "none")


def _lines(log: Path) -> list[str]:
    """Return the lines of s2video that say how a run ended."""
    said = re.findall(r"^s2video: (.*)$", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    wanted = ("error:", "stopped", "replica-", "stopping")
    return [line for line in said if any(word in line for word in wanted)]


def _wait(condition: object, tops: list[subprocess.Popen[bytes]], log: Path) -> None:
    assert callable(condition)
    while not condition():
        if all(top.poll() is not None for top in tops):
            raise RuntimeError(f"the run ended before the fault:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


def _tagged(folder: Path) -> list[int]:
    """Return the processes of a run, which have its folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if bytes(folder) in (entry / "environ").read_bytes() and _state(int(entry.name)) != "Z":
                found.append(int(entry.name))
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def table(endings: list[Ending]) -> str:
    """Return the endings as a Markdown table."""
    rows = [
        "| started by | what happens | phase | line after | end after | code | line |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in endings:
        after = "" if e.line_seconds is None else f"{e.line_seconds:.0f} s"
        rows.append(f"| {e.start} | {e.way} | {e.phase} | {after} | {e.end_seconds:.0f} s | {e.code} | {e.line} |")
    return "\n".join(rows)


def main() -> None:
    """Run the cases, several at once because most of their time is waiting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a file of JSON lines; cases that it has are not run again")
    parser.add_argument("--only", nargs="+", default=[], help="words that the wanted rows have")
    parser.add_argument("--at-once", type=int, default=4, help="runs at the same time")
    arguments = parser.parse_args()
    done: list[Ending] = []
    if arguments.output is not None and arguments.output.exists():
        done = [Ending(**json.loads(line)) for line in arguments.output.read_text(encoding="utf-8").splitlines()]
    known = {(e.way, e.phase, e.start) for e in done}
    todo = [c for c in cases() if (c.way, c.phase, c.start) not in known]
    todo = [case for case in todo if all(word in case.words for word in arguments.only)]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # runs inherit that it is ignored, as under nohup
    with ThreadPoolExecutor(arguments.at_once) as pool:
        for ending in pool.map(run, todo):
            done.append(ending)
            print(json.dumps(asdict(ending), ensure_ascii=False), file=sys.stderr, flush=True)
            if arguments.output is not None:
                with arguments.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(ending), ensure_ascii=False) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
