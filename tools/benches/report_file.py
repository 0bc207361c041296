"""The result file of a benchmark: its settings, then a line for each row of the table and each section's numbers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from json_lines import read_lines, write_lines


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report: its own facts and, under "sections", what `Section.as_json` returns, by name."""
    header = {name: value for name, value in report.items() if name != "sections"}
    write_lines(path, header, _records(report["sections"]))


def _records(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, section in sections.items():
        for row in section["rows"]:
            yield {"section": name, **row}
        yield {"section": name, "raw": section["raw"]}


def read_report(path: Path) -> dict[str, Any]:
    """Read what `write_report` wrote.

    Raises:
        InputError: if it is no such file.
    """
    header, records = read_lines(path)
    sections: dict[str, Any] = {}
    for record in records:
        section = sections.setdefault(record.pop("section"), {"rows": [], "raw": {}})
        if "raw" in record:
            section["raw"] = record["raw"]
        else:
            section["rows"].append(record)
    return {**header, "sections": sections}
