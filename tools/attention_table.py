"""Print the table of attention backends in docs/speed.md, from the rules that the engine follows.

python tools/attention_table.py
"""

from s2video.parallel.backends import NEEDS


def table() -> str:
    """Return what each backend needs and works with, in Markdown."""
    rows = [("backend", "runs on", "dtypes on a GPU", "one rank, Ulysses", "ring", "run by tests")]
    for name, need in NEEDS.items():
        half = "bfloat16, float16" if need.half else "all"
        ring = "yes" if need.lse else "no: no log-sum-exp"
        tests = "rules and doubles" if need.gpu else "yes"
        rows.append((f"`{name}`", "GPU" if need.gpu else "GPU, CPU", half, "yes", ring, tests))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


if __name__ == "__main__":
    print(table())
