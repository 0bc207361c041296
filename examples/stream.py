"""Frames as they are decoded, with progress; and a second video, called off half-way: python examples/stream.py"""

import s2video


def main(steps: int = 30) -> None:
    engine = s2video.load("shapes-wan", sampling={"num_inference_steps": steps})

    def show(done: int, total: int) -> None:
        print(f"step {done} of {total}")

    for chunk in engine.stream("a small blue square moving down on a white background", seed=1, on_step=show):
        print(f"{len(chunk)} frames, mean brightness {float(chunk.mean()):.3f}")

    try:
        engine("a small blue square moving up on a white background", on_step=lambda done, total: 2 * done < total)
    except s2video.StoppedError as error:
        print(error)


if __name__ == "__main__":
    main()
