"""Print the table of attention backends in docs/speed.md, from the rules that the engine follows.

python tools/attention_table.py
"""

from s2video.parallel.backends import table

if __name__ == "__main__":
    print(table())
