"""Plans of the package's configs."""

from pathlib import Path

import s2video
from s2video.config.run import read_config
from s2video.planning.cards import CARDS, Card
from s2video.planning.plan import Plan, make_plan

ROOT = Path(s2video.__file__).resolve().parents[1]
WAN_14B = ROOT / "configs" / "wan2.1-t2v-14b-720p.yaml"
H100 = CARDS["H100"]


def planned(world_size: int, *overrides: str, config: Path = WAN_14B, card: Card = H100) -> Plan:
    return make_plan(read_config(config, overrides), world_size, card)
