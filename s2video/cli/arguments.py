"""Arguments that several commands take, how they are read, and how help looks."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..config.named import EMBEDDED_CONFIG
from ..config.run import RunConfig, parse_override
from ..errors import InputError
from ..media.formats import FORMATS
from ..models.recipes import Loaded, load_config_with_note, load_model_config
from ..system import ranks, terminal
from ..system.files import user_path


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors, and whose help keeps examples as they are and shows defaults."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Help, "allow_abbrev": False, **keywords})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse an unknown choice, and name those with a help text: others are for the program itself."""
        public = [str(choice.dest) for choice in getattr(action, "_choices_actions", [])]
        if public and value not in (action.choices or ()):
            near = difflib.get_close_matches(str(value), public, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(public)}"
            raise InputError(f"unknown command {str(value)[:60]!r}; {hint} (see {self.prog} --help)")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments") and "=" in message:
            message += "; write --set before each KEY=VALUE"
        raise InputError(f"{message} (see {self.prog} --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_shown = action.option_strings and action.default not in (None, False, "", (), [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if is_shown and action.help else action.help


def add_command(commands: Any, name: str, purpose: str, *, examples: str = "", **options: Any) -> Parser:
    """Add the parser of a command, with a line on its purpose and examples of its use."""
    epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()) if examples else None
    parser: Parser = commands.add_parser(name, help=purpose, description=f"{purpose}.", epilog=epilog, **options)
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model and its settings, see `read_model_arguments`."""
    group = parser.add_argument_group("model and settings")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--model", metavar="M", help="a name of `s2video models`, a folder, or a Hub id")
    either.add_argument("--config", metavar="C", help="a name of `s2video models`, or a YAML file")
    add_set_argument(group)


def add_set_argument(group: Any) -> None:
    """Add --set."""
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as guidance.s2_scale=0.3; `s2video config` lists them",
    )


def read_model_arguments(arguments: argparse.Namespace, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the settings that --model, --config and --set name, and print where they come from if it is not obvious.

    Args:
        changes: settings of other arguments, by dotted key; they are applied last.

    Raises:
        InputError: something that cannot be found or used.
    """
    if arguments.config is not None:
        loaded = load_config_with_note(arguments.config, arguments.set)
    else:
        overrides: dict[str, Any] = {}
        for item in arguments.set:
            overrides |= parse_override(item)
        loaded = load_model_config(arguments.model or EMBEDDED_CONFIG, overrides)
        if arguments.model is None:
            path = loaded.config.model.path
            loaded = Loaded(loaded.config, f"no --model or --config: using the embedded model, {path}")
    if loaded.note:
        say(loaded.note)
    return loaded.config.patched(changes or {}, "command line")


def say(note: str) -> None:
    """Print a line for the user, once for all ranks."""
    if ranks.is_main_rank():
        terminal.say(note)


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `generate` and `launch t2v|i2v` take."""
    add_model_arguments(parser)
    video = parser.add_argument_group("what to make")
    prompts = video.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="P", help="what the video shows; without it, the config's prompt")
    prompts.add_argument("--prompt-file", type=path_argument, metavar="F", help="UTF-8 text, a prompt in each line")
    video.add_argument("--negative-prompt", metavar="N", help="prompt of the unconditional pass")
    video.add_argument("--image", metavar="I", help="first image of the video; for models that take one")
    video.add_argument("--last-image", metavar="I", help="last image of the video; for models that take two")
    video.add_argument(
        "--control-video", metavar="V", help="frames that steer the video: a file or a folder; for Wan VACE"
    )
    video.add_argument(
        "--control-mask", metavar="M", help="where control's frames are replaced (white) or kept (black)"
    )
    video.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="I",
        help="image of what the video shows; for Wan VACE; can be given several times",
    )
    video.add_argument("--seed", type=whole_number, metavar="S", help="seed of the noise and the masks")
    video.add_argument(
        "--num-videos", type=whole_number, default=1, metavar="K", help="videos for each prompt: seeds S to S+K-1"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--output",
        metavar="X.mp4",
        help="or .mov, .png, .exr; several videos: X-000.mp4, X-001.mp4, ..., or a template: {prompt}_s{seed}.{ext}",
    )
    add_also_argument(files)
    add_codec_arguments(files)
    add_overwrite_argument(files)
    files.add_argument("--keep-latents", action="store_true", help="keep X.latents.safetensors next to the video")
    files.add_argument(
        "--resume", action="store_true", help="skip videos that are whole; continue from X.checkpoint.safetensors"
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a progress bar")


def add_overwrite_argument(group: Any) -> None:
    """Add --overwrite."""
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that s2video did not make, or that were changed; its own are always replaced",
    )


def add_also_argument(group: Any) -> None:
    """Add --also."""
    group.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="FORMAT",
        help="one more file of the same frames, next to the video: a codec, or a name such as {name}_proxy.mp4; can be "
        "given several times",
    )


def add_codec_arguments(group: Any) -> None:
    """Add the arguments on how a video is written."""
    group.add_argument("--codec", choices=list(FORMATS), help="without it, by the output's suffix")
    group.add_argument("--ffmpeg", metavar="PATH", help="the ffmpeg to use; without it, the one of imageio-ffmpeg")
    group.add_argument(
        "--credentials", metavar="CHAIN", help="sign the file (C2PA): a PEM file of certificates, the signer's first"
    )
    group.add_argument("--credentials-key", metavar="KEY", help="a PEM file with the signer's private key")


def add_selftest_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `selftest` takes."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")


def whole_number(text: str) -> int:
    """Return text as an int; argparse reports what is wrong with it."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:60]!r}") from None
    if abs(number) >= 2**64:  # no setting is larger than a seed
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 64 bits, got {text[:60]!r}")
    return number


def optional_path(text: str | None) -> Path | None:
    """Return the path of an argument that is kept as text, because settings hold it as text; None: not given."""
    return None if text is None else user_path(text)


def path_argument(text: str) -> Path:
    """Return text as a path, with ~ expanded; argparse reports what is wrong with it."""
    try:
        return user_path(text)
    except InputError as error:  # argparse would hide its message, as that of any ValueError
        raise argparse.ArgumentTypeError(str(error)) from None
