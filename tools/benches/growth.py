"""How costs grow with the size of a batch and of a prompt: the seconds of large inputs over those of small ones."""

import tempfile
from functools import partial
from pathlib import Path

from benches.rows import Section, measured
from benches.workloads import Options, seconds
from s2video.batch.store import Entry, Store
from s2video.review.captions import Caption, caption_bar

CONFIG = '{"x": "' + "y" * 2500 + '"}'  # as long as a job's


def batch_of(folder: Path, num_done: int, num_waiting: int) -> Store:
    """Return a store with finished jobs, their files, and waiting ones."""
    store = Store(folder)
    store.create()
    names = [f"{number:06d}.mp4" for number in range(num_done + num_waiting)]
    store.put([Entry(name, "here", "m", CONFIG, "k", 1.0) for name in names], frozenset())
    with store._transaction() as connection:
        connection.execute("UPDATE jobs SET state = 'done', owner = 'r0' WHERE position < ?", (num_done,))
        rows = [(name, name, "1" * 64) for name in names[:num_done]]
        connection.executemany("INSERT INTO files VALUES (?, ?, ?)", rows)
        store._write_checksums(connection)
    return store


def one_round(store: Store) -> None:
    """What a supervisor asks several times a second."""
    store.owners()
    store.release()
    store.count_open()


def one_job(store: Store) -> None:
    """What a replica asks for each video."""
    drawn = store.draw("r1", "m")
    assert drawn is not None
    store.finish(drawn.name, "r1", {drawn.name: "2" * 64})


def bench(options: Options) -> Section:
    few, many = (10, 100) if options.quick else (1_000, 100_000)
    short, long = 200, 20_000
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        small, large = (batch_of(Path(name, str(count)), count, options.repeats + 1) for count in (few, many))
        ways = {
            "round, few": partial(one_round, small),
            "round, many": partial(one_round, large),
            "job, few": partial(one_job, small),
            "job, many": partial(one_job, large),
            "caption, short": partial(caption_bar, [(Caption("t", "a word " * (short // 7)), 0, 480)], 480, size=20),
            "caption, long": partial(caption_bar, [(Caption("t", "a word " * (long // 7)), 0, 480)], 480, size=20),
        }
        for way in ways.values():
            way()
        for _ in range(options.repeats):
            for key, way in ways.items():
                times.setdefault(key, []).append(seconds(way))
    batch = f"{many:,} / {few:,} finished jobs, seconds of"
    rows = [
        measured(f"{batch} a supervisor's round", times["round, many"], times["round, few"], "1"),
        measured(f"{batch} drawing and finishing a job", times["job, many"], times["job, few"], "1"),
        measured(
            f"A prompt of {long:,} / {short} letters, seconds of its caption",
            times["caption, long"],
            times["caption, short"],
            "100, in proportion",
        ),
    ]
    return Section(rows, {"jobs": [few, many], "letters": [short, long], "seconds": times})
