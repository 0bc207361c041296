"""Train `shapes-wan` from nothing: VAE, latents, text encoder and transformer, export.

    python tools/train_shapes.py --work runs/shapes-wan

Every stage keeps its state in the work folder, so the same command goes on where it was stopped; logs are
`vae.jsonl` and `transformer.jsonl` there. On two CPU cores the defaults take about two hours.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from shapes.caption_encoder import MAX_SEQUENCE_LENGTH
from shapes.export import export
from shapes.train_transformer import (
    EMPTY_CAPTIONS,
    FAMILY_SHARE,
    DataSet,
    encode_clips,
    train_transformer,
    training_families,
    training_scene,
)
from shapes.train_vae import train_vae
from shapes.world import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/shapes-wan"), help="checkpoints and logs")
    parser.add_argument("--output", type=Path, default=Path("runs/shapes-wan/model"), help="the pipeline folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--init", type=Path, help="a shapes-wan folder: keep its VAE, train its other parts further")
    parser.add_argument("--vae-steps", type=int, default=2200)
    parser.add_argument("--vae-learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--clips", type=int, default=12000, help="clips whose latents the transformer is trained on")
    parser.add_argument(
        "--family-clips", type=int, default=12000, help="clips in families that differ in one attribute"
    )
    parser.add_argument("--word-steps", type=int, default=2500, help="steps of the text encoder alone, before")
    parser.add_argument("--steps", type=int, default=4900, help="steps of text encoder and transformer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.3e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    stages = []
    if args.init:
        vae = AutoencoderKLWan.from_pretrained(args.init, subfolder="vae", dtype=torch.float32).to(args.device)
        stages.append(f"| 0 | what `{args.init}` was when this began: its VAE, and the start of the rest | | | |")
    else:
        vae, vae_state = train_vae(
            args.work,
            seed=args.seed,
            num_steps=args.vae_steps,
            learning_rate=args.vae_learning_rate,
            device=args.device,
        )
        stages.append(
            f"| 1 | VAE on crops of 5 to 17 frames | {vae_state.step} x 3 to 16 | {_losses(vae_state.losses)} "
            f"| {vae_state.seconds / 60:.0f} min |"
        )
    singles = [training_scene(args.seed, i) for i in range(args.clips)]
    families = training_families(args.seed, args.family_clips)
    in_families = [scene for family in families for scene in family]
    latents = torch.cat(
        [
            encode_clips(vae, scenes, args.work / name, device=args.device)
            for name, scenes in (("latents.safetensors", singles), ("families.safetensors", in_families))
            if scenes
        ]
    )
    data = DataSet.create(latents, singles, families)
    if args.init:  # what its transformer was trained with
        mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    else:
        mean, std = (f(latents.float(), dim=(0, 2, 3, 4)) for f in (torch.mean, torch.std))
    models, state = train_transformer(
        data,
        mean,
        std,
        args.work,
        seed=args.seed,
        word_steps=args.word_steps,
        num_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        device=args.device,
        init=args.init,
    )
    share = f"{FAMILY_SHARE:.0%} of them in families, " if families else ""
    stages.append(
        f"| 2 | text encoder and transformer, flow matching on the latents of {len(latents)} clips, {share}"
        f"{EMPTY_CAPTIONS:.0%} empty captions | {state.step} x {args.batch_size} | {_losses(state.losses)} "
        f"| {state.seconds / 60:.0f} min |"
    )
    words = {"sizes": SIZES, "colours": COLORS, "shapes": SHAPES, "directions": DIRECTIONS, "backgrounds": BACKGROUNDS}
    card = {
        "vocabulary": "\n".join(f"- {name}: {', '.join(values)}" for name, values in words.items()),
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "command": shlex.join(["python", "tools/train_shapes.py", *_recipe(args)]),
        "seed": args.seed,
        "device": args.device,
        "torch": torch.__version__,
        "stages": "\n".join(stages),
    }
    export(vae, models, mean, std, args.output, card=card)
    print(args.output)


def _recipe(args: argparse.Namespace) -> list[str]:
    """The arguments that decide the weights."""
    names = (
        *(("init",) if args.init else ()),
        "seed",
        "vae_steps",
        "vae_learning_rate",
        "clips",
        "family_clips",
        "word_steps",
        "steps",
        "batch_size",
        "learning_rate",
    )
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]


def _losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


if __name__ == "__main__":
    sys.exit(main())
