"""Ranks prove that they run the same job before the first step.

Ranks with different masks or inputs do not hang: they compute silently wrong numbers. So every rank states what it
is about to do, all compare, and a difference stops all of them with one error.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..errors import AgreementError
from .collectives import gather_objects
from .mesh import Axis

_SHOWN = 60  # characters of a differing value that go into the error


def require_agreement(statement: Mapping[str, Any], axis: Axis) -> str:
    """Compare `statement`, a mapping from field names to JSON-like values, across all ranks of the axis.

    Returns:
        A SHA-256 digest of the statement, equal on all ranks.

    Raises:
        AgreementError: on every rank alike, naming each differing field, its values and the ranks that hold them.
    """
    own = {field: json.dumps(value, sort_keys=True, default=str) for field, value in statement.items()}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len(set(gather_objects(digest, axis))) == 1:
        return digest
    everyone: list[dict[str, str]] = gather_objects(own, axis)
    differences = []
    for field in sorted(set().union(*everyone)):
        holders: dict[str, list[int]] = {}
        for rank, values in enumerate(everyone):
            holders.setdefault(values.get(field, "(absent)"), []).append(rank)
        if len(holders) > 1:
            said = "; ".join(f"rank {_ranks(ranks)}: {_short(value)}" for value, ranks in holders.items())
            differences.append(f"{field} ({said})")
    raise AgreementError(
        f"ranks do not run the same job; they differ in {', '.join(differences)}. "
        "Start every rank with the same arguments, files and versions"
    )


def _ranks(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
