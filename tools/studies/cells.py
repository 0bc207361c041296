"""What the study makes: clips, and cells, each of which is one way to make a set of them. Knows no model.

A cell that several parts of the study need (plain CFG, S² as configured) has one name, so it is made once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

from evaluate import Clip, draw_clips

from s2video.config.run import GuidanceConfig, RunConfig, build_config
from s2video.errors import InputError
from s2video.guidance.equations import needs_uncond
from s2video.guidance.masks import step_masks
from s2video.planning.work import SubWork
from s2video.sampling.guiders import OtherGuidance

LAMBDAS, OMEGAS = (1.0, 2.0, 3.0, 5.0), (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
STRONG = 1.0  # ω at which the grid, made first, saw S² begin to help on shapes-wan: more captions tell whether it does
ALONE = ("s2-alone", "s2-alone-strong")  # S² in place of CFG: what it adds is told by cond alone
DROP_COUNTS = (0, 1, 2, 3, 4)
WINDOWS = ((0.4, 0.6), (0.3, 0.7), (0.2, 0.8), (0.1, 0.9), (0.0, 1.0))
NUM_SPREAD = 5  # mask seeds at one noise seed, and noise seeds at one mask seed
NAIVE_DRAWS = 4
SEEDS_APART, MASK_SEEDS = 1_000_000, 500_000_000  # between takes; where the masks' seeds begin
NO_S2: Mapping[str, Any] = {"s2_scale": 0.0}
NUM_SHOWN = 12  # captions whose frames are kept, as many of each number of things

Set = Literal["main", "side", "reference"]


class Take(NamedTuple):
    """Which noise and which masks a clip gets: counts from 0, each its own seed for every clip."""

    noise: int
    masks: int


FIRST = Take(0, 0)


@dataclass(frozen=True)
class Cell:
    """One way to make a set of clips.

    Attributes:
        name: of its file.
        clips: which set.
        takes: each clip is made once for each.
        guidance, num_steps: in place of the config's; None: the config's own.
        renders: the renderer's own clips, in place of the model's.
    """

    name: str
    clips: Set = "side"
    takes: tuple[Take, ...] = (FIRST,)
    guidance: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    renders: bool = False

    def config(self, base: RunConfig) -> RunConfig:
        """The run's config. Raises InputError for settings that there are not."""
        values = base.model_dump(mode="json")
        values["guidance"] |= self.guidance
        if self.num_steps is not None:
            values["sampling"]["num_inference_steps"] = self.num_steps
        return build_config(values, f"cell {self.name}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Point:
    """A cell in its place in a part of the study: `at` is what varies there, for machines, `title` for people."""

    at: Any
    title: str
    cell: Cell


@dataclass(frozen=True)
class Counts:
    """How much is made: captions for each number of things, and takes of the main cells."""

    captions: int = 100
    side_captions: int = 32
    reference: int = 500
    seeds: int = 2

    def clips(self, which: Set) -> list[Clip]:
        """Held-out captions: of one thing first, then of two. "side" is where "main" begins.

        There are 72 captions of one held-out thing; where more are asked for, some come twice, with other seeds.
        """
        count = {"main": self.captions, "side": self.side_captions, "reference": self.reference}[which]
        name = "reference" if which == "reference" else "study"
        return [
            clip
            for things in (1, 2)
            for clip in draw_clips(name, count=count, num_things=things, seed=0, first_seed=100_000 * things)
        ]


def seed_of(clip: Clip, take: Take) -> int:
    return clip.seed + SEEDS_APART * take.noise


def mask_seed_of(clip: Clip, take: Take) -> int:
    return MASK_SEEDS + clip.seed + SEEDS_APART * take.masks


def make_plan(
    config: RunConfig, num_blocks: int, *, seeds: int, slg_layers: Sequence[int]
) -> dict[str, tuple[Point, ...]]:
    """The parts of the study by name. "truth" belongs to all of them.

    Raises:
        InputError: a config whose own guidance is not S², for that is what is varied.
    """
    guidance = config.guidance
    if not guidance.uses_s2 or not needs_uncond(guidance.cfg_scale):
        raise InputError(
            "the study varies CFG and S²: expected a config with method s2, s2_scale above 0 and cfg_scale other than "
            f"1, got {guidance.method}, {guidance.s2_scale:g} and {guidance.cfg_scale:g}"
        )
    side = _SideCells(guidance, num_blocks)
    plain = Point("cfg", "CFG", side(**NO_S2))
    scales, omegas = sorted({*LAMBDAS, guidance.cfg_scale}), sorted({*OMEGAS, guidance.s2_scale})
    return {
        "truth": (
            Point("truth", "the renderer", Cell("truth", "main", renders=True)),
            Point("reference", "the renderer, other clips", Cell("reference", "reference", renders=True)),
        ),
        "main": _main_part(config, num_blocks, seeds, slg_layers),
        "naive": (plain, *(Point(n, f"N = {n}", side(num_draws=n)) for n in (1, NAIVE_DRAWS))),
        "grid": tuple(
            Point([scale, w], f"λ = {scale:g}, ω = {w:g}", side(cfg_scale=scale, s2_scale=w))
            for scale in scales
            for w in omegas
        ),
        "drop": tuple(Point(n, str(n) if n else "0, that is CFG", side(drop_count=n)) for n in DROP_COUNTS),
        "first": (
            plain,
            Point("another", "one, never the first", side(drop_count=1)),
            Point("first", "always the first", side(drop_count=1, never_drop=[], band=[0, 0])),
        ),
        "window": (plain, *(Point(list(w), f"{w[0]:g} to {w[1]:g}", side(window=list(w))) for w in WINDOWS)),
        "masks": tuple(Point(i, f"mask seed {i}", side(Take(0, i))) for i in range(NUM_SPREAD)),
        "seeds": tuple(Point(i, f"noise seed {i}", side(Take(i, 0))) for i in range(NUM_SPREAD)),
    }


def _main_part(config: RunConfig, num_blocks: int, seeds: int, slg_layers: Sequence[int]) -> tuple[Point, ...]:
    """Return the methods that are compared on all captions, with `seeds` takes of each."""
    takes = tuple(Take(i, i) for i in range(seeds))
    longer = round(config.sampling.num_inference_steps * cost_ratio(config.guidance, num_blocks, config))

    def cell(name: str, num_steps: int | None = None, **guidance: Any) -> Cell:
        return Cell(f"main-{name}", "main", takes, guidance, num_steps)

    slg = {"method": "slg", "slg": {"layers": list(slg_layers)}}
    return (
        Point("cond", "cond only", cell("cond", cfg_scale=1.0, **NO_S2)),
        Point("cfg", "CFG", cell("cfg", **NO_S2)),
        Point("cfg-longer", f"CFG, {longer} steps", cell("cfg-longer", num_steps=longer, **NO_S2)),
        Point("cfg-zero-star", "CFG-Zero*", cell("cfg-zero-star", method="cfg_zero_star", **NO_S2)),
        Point("slg", "SLG", cell("slg", **slg, **NO_S2)),
        Point("s2", "S²", cell("s2")),
        Point("s2-strong", f"S², ω = {STRONG:g}", cell("s2-strong", s2_scale=STRONG)),
        Point(ALONE[0], "S² at λ = 1", cell("s2-alone", cfg_scale=1.0)),
        Point(ALONE[1], f"S² at λ = 1, ω = {STRONG:g}", cell("s2-alone-strong", cfg_scale=1.0, s2_scale=STRONG)),
    )


class _SideCells:
    """Makes cells of the side set, named after what differs from the config: equal cells have equal names."""

    def __init__(self, base: GuidanceConfig, num_blocks: int) -> None:
        self._values = base.model_dump(mode="json")
        self._drop_count = base.mask_spec().count(num_blocks)

    def __call__(self, take: Take = FIRST, **guidance: Any) -> Cell:
        """Return the cell of one take; `guidance` are the settings that may differ from the config's."""
        changed = {name: value for name, value in self._plain(guidance).items() if value != self._values[name]}
        seeds = {name: value for name, value in take._asdict().items() if value}
        name = "-".join(["side", *(f"{name}-{_word(value)}" for name, value in (changed | seeds).items())])
        return Cell(name, "side", (take,), changed)

    def _plain(self, guidance: dict[str, Any]) -> dict[str, Any]:
        """Return the shortest settings with the same effect."""
        if guidance.get("drop_count") == 0:
            return dict(NO_S2)  # a sub pass that drops nothing is cond: that is CFG
        if guidance.get("s2_scale") == 0:
            return {name: value for name, value in guidance.items() if name == "cfg_scale"} | NO_S2
        if guidance.get("drop_count") == self._drop_count:
            return {name: value for name, value in guidance.items() if name != "drop_count"}
        return guidance


def _word(value: Any) -> str:
    return "_".join(map(_word, value)) or "none" if isinstance(value, list) else f"{value:g}"


@cache  # a clip costs what the one before it did, unless masks are drawn
def evaluations(guidance: GuidanceConfig, *, num_blocks: int, num_steps: int, mask_seed: int) -> float:
    """What one clip costs, in passes through the whole network, blocks counting alike; a sub pass from its fork on."""
    masks: list[tuple[tuple[int, ...], ...]] = []
    if guidance.method == "slg":
        other = OtherGuidance(guidance, num_steps)
        masks = [other.masks(step) for step in range(num_steps)]
    elif guidance.uses_s2:
        spec = guidance.mask_spec()
        masks = [
            step_masks(spec, num_blocks=num_blocks, seed=mask_seed, step=step, num_steps=num_steps)
            for step in range(num_steps)
        ]
    subs = sum(SubWork.of_masks(drawn, num_blocks, share_prefix=guidance.share_prefix).passes for drawn in masks)
    return (2 if needs_uncond(guidance.cfg_scale) else 1) * num_steps + subs


def cost_ratio(guidance: GuidanceConfig, num_blocks: int, config: RunConfig) -> float:
    """S²'s cost over CFG's for a whole run, as expected over masks."""
    spec, num_steps = guidance.mask_spec(), config.sampling.num_inference_steps
    sub = SubWork.expected(spec, num_blocks, share_prefix=guidance.share_prefix).passes
    return 1 + sub * sum(spec.active(step, num_steps) for step in range(num_steps)) / (2 * num_steps)
