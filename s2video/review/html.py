"""HTML pages from the templates in `templates/`: one file each, which loads nothing from a network.

A page extends `base.html` and takes its parts (players, tables, failures, mask pictures) from `parts.html`. All values
are escaped. Text from outside goes into elements and attributes only, never into a script or a style sheet. Knows
nothing of what a page shows.
"""

import base64
import hashlib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **context: object) -> str:
    """Return the text of a page.

    Args:
        template: name of a file in `templates/`, such as "run.html".
        context: the names that the template uses.

    Raises:
        jinja2.UndefinedError: the template uses a name that `context` does not have.
    """
    text = environment().get_template(template).render(context)
    return text.encode("utf-8", "replace").decode("utf-8")  # names of files can hold bytes that are not UTF-8


@cache
def environment() -> Environment:
    """Return the environment of all pages: values are escaped, and an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("s2video", "review/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"source": source, "digest": digest}
    made.filters["counted"] = counted
    return made


@cache
def source(name: str) -> Markup:
    """Return a script or a style sheet of `templates/` as it is, for a page to hold."""
    return Markup(files("s2video").joinpath("review/templates", name).read_text(encoding="utf-8"))


@cache
def digest(name: str) -> str:
    """Return the hash by which a page's Content-Security-Policy allows `source(name)`, and no other script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source(name).encode("utf-8")).digest()).decode("ascii")


def data_url(kind: str, content: bytes) -> str:
    """Return a URL that holds `content`.

    Args:
        kind: its media type, such as "video/mp4".
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def relative_link(path: Path, page: Path) -> str:
    """Return a URL of `path` for the file `page`. It holds for any file name, and after both are moved together."""
    return quote(os.fsencode(Path(os.path.relpath(path.absolute(), page.absolute().parent)).as_posix()))


def counted(count: int, noun: str) -> str:
    """Return "1 video", "2 videos"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
