"""Train an embedded model from nothing: VAE, latents, text encoder and transformer, export.

    python tools/train_shapes.py --design shapes-wan-24 --work runs/shapes-wan-24

Every stage keeps its state in the work folder, so after an interruption the same command resumes. Its logs are
`vae.jsonl` and `transformer.jsonl`. shapes/designs.py has the designs, with defaults of what is not given. On two CPU
cores those of `shapes-wan` take about two hours, and those of `shapes-wan-24` with `--compile` under five. Exit codes:
0 done, 2 the input cannot be used.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from shapes.caption_encoder import MAX_SEQUENCE_LENGTH
from shapes.designs import DESIGNS, Design
from shapes.export import export
from shapes.loop import TrainState
from shapes.train_transformer import (
    EMPTY_CAPTIONS,
    FAMILY_SHARE,
    DataSet,
    Normalization,
    Recipe,
    encode_clips,
    train_transformer,
    training_families,
    training_scene,
)
from shapes.train_vae import reconstruction_errors, train_vae
from shapes.world import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES

from s2video.errors import InputError
from s2video.system.files import write_json
from s2video.system.json_reader import read_json
from s2video.system.locks import held_lock


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--design", choices=DESIGNS, default="shapes-wan", help="the model")
    add("--work", type=Path, help="checkpoints and logs (default: runs/DESIGN)")
    add("--output", type=Path, help="the pipeline folder (default: model in the work folder)")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    add("--init", type=Path, help="a folder of the same design: keep its VAE, train its other parts further")
    add("--vae-steps", type=int)
    add("--vae-learning-rate", type=float, default=1.5e-3)
    add("--clips", type=int, help="clips whose latents the transformer is trained on")
    add("--family-clips", type=int, help="clips in families that differ in one attribute")
    add("--word-steps", type=int, help="steps of the text encoder alone, before")
    add("--steps", type=int, help="steps of text encoder and transformer")
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=1.3e-3)
    add("--compile", action="store_true", help="compile the transformer's blocks (needs a C++ compiler)")
    args = parser.parse_args()
    design = DESIGNS[args.design]
    for name in ("vae_steps", "clips", "family_clips", "word_steps", "steps"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(design, name))
    args.work = args.work or Path("runs") / design.name
    args.output = args.output or args.work / "model"
    return args


def check_init(design: Design, folder: Path) -> None:
    """Raise InputError if the folder of `--init` holds no model of this design."""
    for part, expected in (("transformer", design.transformer), ("vae", design.vae)):
        config = read_object(folder / part / "config.json")
        for name, value in expected.items():
            if config.get(name) != value:
                raise InputError(
                    f"--init: expected a {design.name}, with {name} {value} in its {part}, got {config.get(name)}"
                )


def read_object(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, got something else; check the file")
    return values


def main() -> int:
    args = parse()
    try:
        if args.init:
            check_init(DESIGNS[args.design], args.init)
        run(args)
    except InputError as error:
        print(f"train_shapes: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Train all stages in the work folder. Raises InputError for one that is in use, or of another run."""
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    with held_lock(args.work / "lock") as is_ours:
        if not is_ours:
            raise InputError(f"{args.work}: another process trains there; wait for it, or choose another --work")
        _keep_to_one_run(args)
        _train_all(args)


def _keep_to_one_run(args: argparse.Namespace) -> None:
    """Record what the folder's files depend on, and refuse other values: they would not be noticed later."""
    path = args.work / "run.json"
    wanted = {name: str(getattr(args, name)) for name in ("design", "seed", "init", "vae_steps", "vae_learning_rate")}
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_object(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{path}: expected {option} {value}, got {found.get(name)}; choose another --work")


def _train_all(args: argparse.Namespace) -> None:
    vae, vae_stage = make_vae(args)
    data = make_data(vae, args)
    if args.init:  # the statistics that its transformer was trained with
        normalization = Normalization(torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std))
    else:
        normalization = Normalization(*(f(data.latents.float(), dim=(0, 2, 3, 4)) for f in (torch.mean, torch.std)))
    design = DESIGNS[args.design]
    recipe = Recipe(
        design=design,
        seed=args.seed,
        word_steps=args.word_steps,
        num_steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        device=args.device,
        init=args.init,
        compiles=args.compile,
    )
    models, state = train_transformer(data, normalization, args.work, recipe)
    card = make_card(args, [vae_stage, _transformer_stage(args, len(data.latents), state)])
    export(design, vae, models, normalization.mean, normalization.std, args.output, card=card)
    print(args.output)


def make_vae(args: argparse.Namespace) -> tuple[AutoencoderKLWan, str]:
    """Return the VAE, that of `--init` or a new one, and its row in the card's table of stages."""
    if args.init:
        vae = AutoencoderKLWan.from_pretrained(args.init, subfolder="vae", dtype=torch.float32).to(args.device)
        return vae, f"| 0 | what `{args.init}` was when this began: its VAE, and the start of the rest | | | |"
    vae, state = train_vae(
        DESIGNS[args.design],
        args.work,
        seed=args.seed,
        num_steps=args.vae_steps,
        learning_rate=args.vae_learning_rate,
        device=args.device,
    )
    errors = _losses(reconstruction_errors(vae, seed=args.seed))
    return vae, (
        f"| 1 | VAE on crops of 5 to 17 frames | {state.step} x 3 to 16 | {_losses(state.losses)}; mean error, of 2 "
        f"from black to white: {errors} | {state.seconds / 60:.0f} min |"
    )


def make_data(vae: AutoencoderKLWan, args: argparse.Namespace) -> DataSet:
    """Render and encode the clips, single ones first."""
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
    return DataSet.create(latents, singles, families)


def make_card(args: argparse.Namespace, stages: Sequence[str]) -> dict[str, Any]:
    """Return what the checkpoint's README says of its making."""
    words = {"sizes": SIZES, "colours": COLORS, "shapes": SHAPES, "directions": DIRECTIONS, "backgrounds": BACKGROUNDS}
    return {
        "vocabulary": "\n".join(f"- {name}: {', '.join(values)}" for name, values in words.items()),
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "command": shlex.join(["python", "tools/train_shapes.py", *_recipe(args)]),
        "seed": args.seed,
        "device": args.device,
        "torch": torch.__version__,
        "stages": "\n".join(stages),
    }


def _transformer_stage(args: argparse.Namespace, num_clips: int, state: TrainState) -> str:
    share = f"{FAMILY_SHARE:.0%} of them in families, " if args.family_clips else ""
    return (
        f"| 2 | text encoder and transformer, flow matching on the latents of {num_clips} clips, {share}"
        f"{EMPTY_CAPTIONS:.0%} empty captions | {state.step} x {args.batch_size} | {_losses(state.losses)} "
        f"| {state.seconds / 60:.0f} min |"
    )


def _recipe(args: argparse.Namespace) -> list[str]:
    """The arguments that decide the weights."""
    names = (
        "design",
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
