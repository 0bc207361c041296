"""The commands in README and docs, as tests read them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FORMULA = re.compile(r"[A-Z][\w\[\]]* = ")


class Command(NamedTuple):
    """One command of a document; `comment` is the text after a "#"."""

    document: str
    words: tuple[str, ...]
    comment: str

    @property
    def is_marked(self) -> bool:
        return re.search(r"\b(needs|takes) ", self.comment) is not None

    @property
    def kind(self) -> str:
        """Return the program and its command, such as "s2video batch"."""
        return f"{self.words[0].removeprefix('.venv/bin/')} {self.words[1]}"


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield code blocks with their language, "indented" for those without fences."""
    language: str | None = None
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            if language is not None and language != "indented":
                yield language, lines
                language, lines = None, []
            else:
                language, lines = line[3:].strip(), []
        elif language in (None, "indented"):
            if line.startswith("    "):
                language = "indented"
                lines.append(line.strip())
            elif language == "indented":
                yield language, lines
                language, lines = None, []
        else:
            lines.append(line)


def commands() -> Iterator[Command]:
    """Yield the commands of all documents, in their order."""
    for document in DOCUMENTS:
        name = document.relative_to(ROOT).as_posix()
        for language, lines in blocks(document.read_text(encoding="utf-8")):
            if language in ("indented", "sh"):
                for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
                    if not _FORMULA.match(line):
                        comment = re.search(r"\s#\s(.*)$", line)
                        yield Command(name, tuple(shlex.split(line, comments=True)), comment[1] if comment else "")
