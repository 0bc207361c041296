"""Tests that one `load` reads model_index.json and the header of each weight file once."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "checkpoint_opens.py"


def test_each_file_is_read_once_by_us() -> None:
    finished = subprocess.run([sys.executable, str(TOOL), "--who"], capture_output=True, text=True, check=True)
    counts: dict[tuple[str, str], int] = {}
    file = ""
    for line in finished.stdout.splitlines():
        count, name = line.split(maxsplit=1)
        if ":" in name:
            counts[file, name] = int(count)
        else:
            file = name
    ours = ("models.checkpoint:", "models.weight_files:", "system.json_reader:")
    reads = {key: count for key, count in counts.items() if key[1].startswith(ours)}
    assert set(reads.values()) == {1}
    assert [key for key in reads if key[0] == "model_index.json"] == [
        ("model_index.json", "system.json_reader:read_json")
    ]
    headers = {file for file, who in reads if who.endswith(":read_header")}
    assert headers == {file for file, _ in counts if file.endswith(".safetensors")} and len(headers) == 3
