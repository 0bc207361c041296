"""The same noise under several strengths of S², the models loaded once, and a page to compare them on:
python examples/sweep.py [FOLDER]
"""

import sys
from pathlib import Path

import s2video

PROMPT = "a large green triangle moving up and a small yellow circle moving right on a black background"


def main(folder: Path, steps: int = 30) -> None:
    engine = s2video.load("shapes-wan", **{"sampling.num_inference_steps": steps})
    for scale in (0.0, 0.25, 0.5):
        video = engine(PROMPT, seed=3, guidance={"s2_scale": scale})
        print(video.save(folder / f"s2-{scale}.mp4", crf=12))
    s2video.write_page(s2video.videos_in(folder), [], folder / "index.html", title="s2_scale")
    print(folder / "index.html")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sweep"))
