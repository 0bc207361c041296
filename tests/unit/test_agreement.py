import pytest

from s2video.parallel import agreement
from s2video.parallel.mesh import Axis


def test_one_rank_always_agrees_with_itself() -> None:
    first = agreement.require_agreement({"seed": 1, "masks": [[2, 3]]}, Axis("world"))
    assert first == agreement.require_agreement({"masks": [[2, 3]], "seed": 1}, Axis("world"))
    assert first != agreement.require_agreement({"masks": [[2, 4]], "seed": 1}, Axis("world"))


def test_error_names_fields_values_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the gather with the statements of four ranks."""
    statements = [
        {"seed": "1", "prompt": '"x"'},
        {"seed": "1", "prompt": '"x"'},
        {"seed": "2", "prompt": '"x"'},
        {"seed": "1"},
    ]
    answers = iter([["a", "a", "b", "c"], statements])
    monkeypatch.setattr(agreement, "gather_objects", lambda value, axis: next(answers))
    with pytest.raises(agreement.AgreementError) as caught:
        agreement.require_agreement({"seed": 1, "prompt": "x"}, Axis("world", size=4))
    message = str(caught.value)
    assert 'prompt (rank 0, 1, 2: "x"; rank 3: (absent))' in message
    assert "seed (rank 0, 1, 3: 1; rank 2: 2)" in message
