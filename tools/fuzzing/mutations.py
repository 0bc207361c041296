"""Changes of an input: bytes, JSON values, words of a command line. The same random numbers give the same changes."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]

MAX_INPUT = 200_000  # bytes; larger ones are cut, so that an hour holds many

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 10**9, 10**18, 10**299, 0.5, -0.0, 1e-9, 1e308, 1e999),
    *(
        "",
        " ",
        "x",
        "0",
        "-1",
        "1e999999999",
        "nan",
        "inf",
        "null",
        "on",
        "010",
        "12:30",
        "23.976",
        "24000/1001",
        "1/0",
    ),
    *("01:00:00:00", "99:99:99:99", "../x", "/etc/passwd", "~", "~nobody/x", "~no-such/x", "x" * 300, "x/" * 2500),
    *("a\0b", "\ud800", "\x1b[2J", "\u202e", "猫", "é" * 200, "{seed}", "{", "{x!r}", "{0}", "%d", "$HOME", "*", "-"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": ""},
        {"a": {"b": []}},
        ["x"] * 50,
        [0.1, 0.9],
        [0, 1, 2],
        {"path": "x"},
        [[1, 2], [3]],
    ),
]
TOKENS = [
    *(b"!!int ''", b"!!float [1]", b"!!timestamp x", b"!!binary x", b"!!set {a}", b"&a [*a]", b"&a", b"*a", b"<<: *a"),
    *(b"- ", b": ", b"? ", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 3\n", b"\t", b"#", b"{", b"}", b"[", b"]", b","),
    *(b"'", b'"', b"\\", b"\\x00", b"\\ud800", b"\0", b"\r", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[2J"),
    *(
        b"1e999999999",
        b"9" * 400,
        b"9" * 5000,
        b"-",
        b".inf",
        b".nan",
        b"~",
        b"2024-99-99",
        b"0x",
        b"0b",
        b"1_0",
        b"\n",
    ),
    *(b"[" * 60, b"{a: " * 60, b"- " * 60, b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00"),
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, insert, remove, repeat and cut; earlier bytes, where headers are, more often than others."""
    out = bytearray(data[:MAX_INPUT])
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        end = min(len(out), rng.choice((16, 64, 512, len(out) + 1)))
        at = rng.randrange(end + 1)
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                out[at : at + rng.randrange(1, 9)] = b""
            case 3:
                out[at:at] = rng.choice(TOKENS)
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                size = rng.randrange(1, 65)
                out[at:at] = out[at : at + size] * rng.choice((1, 2, 30))
            case 6:
                token = rng.choice(TOKENS)
                out[at : at + len(token)] = token
            case _ if rng.random() < 0.3:
                del out[at:]
    return bytes(out[:MAX_INPUT])


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON document, or its bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = changed_value(value, rng)
    return dumped(value)[:MAX_INPUT]


def hostile(rng: random.Random) -> Any:
    """Return one of `HOSTILE`, as a copy that can be changed."""
    return copy.deepcopy(rng.choice(HOSTILE))


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one change somewhere inside."""
    places: list[tuple[Any, Any]] = []

    def visit(parent: Any) -> None:
        items = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in list(items):
            places.append((parent, key))
            visit(child)

    visit(value)
    if not places or rng.random() < 0.03:
        return hostile(rng)
    parent, key = rng.choice(places)
    old = parent[key]
    match rng.randrange(9):
        case 0 | 1 | 2:
            parent[key] = hostile(rng)
        case 3:
            del parent[key]
        case 4:
            parent[key] = rng.choice(([old], {"a": old}, [old, old], str(old)[:1000]))
        case 5 if isinstance(old, int | float):
            parent[key] = rng.choice((-old, old + 1, old * 1000, old / 3 if abs(old) < 1e300 else 0, str(old)))
        case 6:
            other, name = rng.choice(places)
            try:
                parent[key] = json.loads(json.dumps(other[name]))
            except (KeyError, IndexError, ValueError):
                parent[key] = None  # a change before this one has removed it
        case 7 if isinstance(parent, dict):
            parent[rng.choice(("x", "", str(key) + "s", str(key).upper(), "a.b", "__metadata__"))] = old
        case 8 if isinstance(parent, list) and len(parent) < 5000:
            parent += [old] * rng.choice((1, 3, 40))
        case _:
            parent[key] = hostile(rng)
    return value


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def mutate_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, in form; or its bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or not 0 < length < len(data):
        return mutate_bytes(data, rng)
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.2 and body:
        return data[: 8 + length] + mutate_bytes(body, rng)
    try:
        values = json.loads(header)
        texts = [(k, v) for k, v in values.get("__metadata__", {}).items()]
        if texts and rng.random() < 0.6:  # JSON in JSON
            key, text = rng.choice(texts)
            values["__metadata__"][key] = mutate_json(text.encode(), rng).decode("utf-8", "replace")
            header = dumped(values)
        else:
            header = mutate_json(header, rng)
    except (ValueError, AttributeError, RecursionError):
        return mutate_bytes(data, rng)
    return len(header).to_bytes(8, "little") + header + body


def mutate_words(words: Sequence[str]) -> Mutate:
    """Return a change of a command line (a JSON list of words) that knows the `words` of its options."""
    own = [*words, *(value for value in HOSTILE if isinstance(value, str) and value != "/etc/passwd")]

    def mutate(data: bytes, rng: random.Random) -> bytes:
        line = [str(word) for word in json.loads(data)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(1, len(line) + 1)
            match rng.randrange(5):
                case 0:
                    line[at:at] = [rng.choice(own)]
                case 1:
                    line[at : at + 1] = [rng.choice(own)]
                case 2:
                    line[at : at + 1] = []
                case 3:
                    line[at : at + 1] = [str(hostile(rng))]
                case _ if at < len(line) and "=" in line[at]:
                    line[at] = f"{line[at].partition('=')[0]}={hostile(rng)}"
        return dumped(line)

    return mutate
