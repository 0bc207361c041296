"""Train the small network that clips are compared by (tools/shapes/features.py), and print its accuracy.

    python tools/train_features.py --work runs/features

It is trained on rendered clips only, which takes minutes on a CPU. After an interruption, run the same command to
resume.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from shapes.features import WEIGHTS, accuracy, load_features, save_features, train_features
from shapes.world import sample_scene

TEST_SCENES = 500  # for each number of things


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/features"), help="the state of the training")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="weights, with their accuracy as metadata")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = train_features(
        args.work, seed=args.seed, num_steps=args.steps, batch=args.batch, learning_rate=args.learning_rate
    )
    save_features(network, args.output, {})
    facts = {"steps": str(args.steps), "batch": str(args.batch), "seed": str(args.seed)}
    for num_things in (1, 2):
        rng = random.Random(f"{args.seed}-features-test-{num_things}")
        scenes = [sample_scene(rng, num_things=num_things, held_out=True) for _ in range(TEST_SCENES)]
        reached = accuracy(load_features(args.output), scenes)  # as it is kept: in half precision
        facts[f"accuracy_{num_things}"] = json.dumps({name: round(share, 4) for name, share in reached.items()})
    save_features(network, args.output, facts)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
