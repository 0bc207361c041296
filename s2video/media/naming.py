"""File names from templates such as "{show}_{shot}_v{version:03d}_s{seed}.{ext}".

An error in a template is refused, because its author can correct it. A value may be any text, such as a prompt or a
cell of a table, so characters that file names forbid are replaced in it. The result is a relative path that stays below
its folder and is legal on Linux, macOS and Windows. Knows no formats and reads no disk.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from string import Formatter
from typing import NamedTuple

from ..errors import InputError

MAX_NAME_BYTES = 200  # of the 255 that file systems allow; files stored next to X have longer suffixes
_UNSAFE = frozenset('<>:"|?*\\/')
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}  # devices on Windows, whatever the suffix
_RESERVED |= {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}


def render_name(template: str, fields: Mapping[str, object]) -> PurePath:
    """Return the relative path that a template makes of its fields.

    Args:
        template: text with fields in braces and "/" between folders; "{{" and "}}" are literal braces. A field may have
            a format: ":03d" or ":d" for whole numbers (also as text, as in a table), ":.2f" or ":06.2f" for numbers,
            ":.40" for the beginning of a text.
        fields: texts and numbers. After formatting, each run of white space and of characters that some system forbids
            (/ \\ : * ? " < > |, control and other invisible ones) becomes one "_".

    Raises:
        InputError: an unknown field (the error suggests the nearest one) or format; a path that is absolute, leaves its
            folder, or has a name that is empty, hidden, longer than 200 bytes, reserved on Windows, ends in a dot or a
            space, or begins with "-" or "~".
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"name {template!r}: {error}; write {{field}}, or {{{{ and }}}} for braces") from None
    text = ""
    for literal, field, spec, conversion in parsed:
        if any(_is_unsafe(character) and character != "/" for character in literal):
            raise InputError(f'name {template!r}: expected no \\ : * ? " < > | or control characters in {literal!r}')
        text += literal
        if field is not None:
            if conversion is not None:
                raise InputError(f"name {template!r}: expected {{{field}}} without !{conversion}")
            text += _safe(_formatted(template, fields, field, spec or ""))
    if template.startswith("/"):
        raise InputError(f"name {template!r}: expected a relative path, got {text!r}")
    names = text.split("/")
    for name in names:
        if problem := _problem(name):
            raise InputError(f"name {template!r}: {name!r} {problem}")
    return PurePath(*names)


def named_after(template: str, name: str, extension: str) -> str:
    """Return a template with {name} and {ext} replaced by a file's name and suffix, which are used as they are.

    Raises:
        InputError: other fields.
    """
    if re.search(r"[{}]", re.sub(r"\{(name|ext)\}", "", template)):
        raise InputError(
            f"name {template!r}: expected no fields but {{name}} and {{ext}}; write braces only around these"
        )
    return template.replace("{ext}", extension).replace("{name}", name)


class Collision(NamedTuple):
    """Two videos, by number, of which one would overwrite `path` of the other, or need a folder of that name."""

    first: int
    later: int
    path: PurePath


def find_collisions(videos: Iterable[Iterable[PurePath]]) -> list[Collision]:
    """Return a collision for each video whose files would overwrite those of an earlier one, on any file system.

    Names collide if they differ only in case, or in composed and decomposed letters. A file collides with a folder of
    its name that another video's files are in.

    Args:
        videos: the paths of all files of each video.
    """
    files: dict[str, int] = {}
    folders: dict[str, int] = {}
    found = []
    for number, paths in enumerate(videos):
        for path in paths:
            name, *above = (_folded(part) for part in (path, *path.parents) if part.name)
            others = [files.get(name, number), folders.get(name, number), *(files.get(a, number) for a in above)]
            if (first := min(others)) < number:
                found.append(Collision(first, number, path))
                break
            files[name] = number
            for folder in above:
                folders.setdefault(folder, number)
    return found


def _folded(path: PurePath) -> str:
    name = unicodedata.normalize("NFC", str(path))
    return unicodedata.normalize("NFC", name.casefold())


def slug(text: str, max_letters: int = 48) -> str:
    """Return the words of `text` in lower case, joined with "-", at most `max_letters` long; "video" if none."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    short = "-".join(words)[: max_letters + 1]
    if len(short) > max_letters:
        short = short[:max_letters] if "-" not in short else short.rpartition("-")[0]
    return short.encode()[: MAX_NAME_BYTES // 2].decode(errors="ignore").rstrip("-") or "video"


def _formatted(template: str, fields: Mapping[str, object], field: str, spec: str) -> str:
    if field not in fields:
        near = difflib.get_close_matches(field[:MAX_NAME_BYTES], fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(fields)}"
        raise InputError(f"name {template!r}: unknown field {field!r}; {hint}")
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"name {template!r}: field {field}: expected text or a number, got {value!r}")
    if re.fullmatch(r"0\d{1,2}d?|d", spec) and re.fullmatch(r"-?\d{1,40}", str(value), re.ASCII):
        return format(int(value), spec)
    if re.fullmatch(r"(0\d{1,2})?\.\d{1,2}f", spec) and isinstance(value, int | float):
        return format(value, spec)
    if re.fullmatch(r"\.\d{1,3}", spec) and isinstance(value, str):
        return format(value, spec)
    if spec:
        raise InputError(
            f"name {template!r}: format {spec!r} does not fit field {field}, {value!r}; expected a format such as 03d "
            "for whole numbers, .2f for numbers, .40 for text"
        )
    return str(value)


def _is_unsafe(character: str) -> bool:
    return character in _UNSAFE or unicodedata.category(character)[0] == "C"


def _safe(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    marked = "".join("/" if _is_unsafe(character) or character.isspace() else character for character in text)
    return re.sub("/+", "_", marked)


def _problem(name: str) -> str | None:
    if not name.strip("_"):
        return 'is not a name: a field is empty, or there is one "/" too many'
    if name[0] in ".-~":
        return f'begins with "{name[0]}"; put a letter before it'
    if name[-1] in ". ":
        return "ends in a dot or a space, which Windows removes; end it in another character"
    if name.split(".")[0].rstrip(" ").upper() in _RESERVED:
        return "is the name of a device on Windows; choose another"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes; shorten a field, as in {{prompt:.40}}"
    return None
