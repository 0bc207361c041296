"""One video, as ProRes with its sidecar: python examples/one_video.py [FOLDER]"""

import sys
from pathlib import Path

import s2video


def main(folder: Path, steps: int = 30) -> None:
    engine = s2video.load("shapes-wan", sampling={"num_inference_steps": steps})
    video = engine("a large red circle moving left on a gray background", seed=7)
    print("frames", list(video.frames.shape), "from", float(video.frames.min()), "to", float(video.frames.max()))
    print(video.save(folder / "circle.mov", codec="prores"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))
