"""Arguments that several commands take, and how they are read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from ..errors import InputError
from ..media.formats import FORMATS


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="C", help="YAML file, see configs/")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="P", help="what the video shows; default: the config's prompt")
    prompts.add_argument("--prompt-file", type=Path, metavar="F", help="UTF-8 text, a prompt a line")
    parser.add_argument("--negative-prompt", metavar="N", help="what the unconditional pass is told")
    parser.add_argument("--image", metavar="I", help="image that the video starts from; for models that take one")
    parser.add_argument("--last-image", metavar="I", help="image that it ends with; for models that take two")
    parser.add_argument("--seed", type=whole_number, metavar="S", help="seed of the noise and the masks")
    parser.add_argument(
        "--num-videos", type=whole_number, default=1, metavar="K", help="videos a prompt: seeds S to S+K-1"
    )
    parser.add_argument(
        "--output",
        metavar="X.mp4",
        help="or .mov, .png, .exr; more than one video: X-000.mp4, X-001.mp4, ..., or as in {prompt}_s{seed}.{ext}",
    )
    add_codec_arguments(parser)
    add_set_argument(parser)
    parser.add_argument("--keep-latents", action="store_true", help="leave X.latents.safetensors beside the video")
    parser.add_argument(
        "--resume", action="store_true", help="skip videos that are whole; go on from X.checkpoint.safetensors"
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a progress bar")


def add_codec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codec", choices=list(FORMATS), help="default: by the output's suffix")
    parser.add_argument("--ffmpeg", metavar="PATH", help="the ffmpeg to use; default: the one that comes along")


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, as guidance.s2_scale=0.3"
    )


def add_selftest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda, if there")


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:60]!r}") from None
