"""A check before the first step that all ranks run the same job.

Ranks with different masks or inputs do not hang; they silently compute wrong numbers. So all ranks compare descriptions
of their job, and any difference stops all of them with one error.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..errors import AgreementError
from .collectives import gather_objects
from .mesh import Axis

_SHOWN = 60  # characters of a differing value in the error
_NAMED = 4  # differing fields in the error


def require_agreement(statement: Mapping[str, Any], axis: Axis) -> str:
    """Check that `statement`, a mapping from field names to JSON-like values, is equal on all ranks of the axis.

    Returns:
        A SHA-256 digest of the statement, equal on all ranks.

    Raises:
        AgreementError: the same on every rank; it lists the first differing fields with their values and ranks.
    """
    own = {field: json.dumps(value, sort_keys=True, default=str) for field, value in statement.items()}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    if len(set(gather_objects(digest, axis))) == 1:
        return digest
    everyone: list[dict[str, str]] = gather_objects(own, axis)
    differences = []
    for field in sorted(set().union(*everyone)):
        holders: dict[str, list[int]] = {}
        for rank, fields in enumerate(everyone):
            holders.setdefault(fields.get(field, "(absent)"), []).append(rank)
        if len(holders) > 1:
            values = "; ".join(f"rank {_ranks(ranks)}: {_short(value)}" for value, ranks in holders.items())
            differences.append(f"{field} ({values})")
    if len(differences) > _NAMED:
        differences[_NAMED:] = [f"and {len(differences) - _NAMED} more"]
    raise AgreementError(
        f"expected the same job on all ranks, got differences in {', '.join(differences)}; "
        "start every rank with the same arguments, files and versions"
    )


def _ranks(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
