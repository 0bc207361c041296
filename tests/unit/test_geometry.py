from itertools import pairwise

import pytest

from s2video.geometry import LatentShape, Shard, TokenGrid, split_evenly


@pytest.mark.parametrize("total", [0, 1, 2, 5, 7, 12, 32760, 75601])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_shards_tile_the_whole_evenly(total: int, parts: int) -> None:
    shards = split_evenly(total, parts)
    assert len(shards) == parts
    assert shards[0].start == 0 and shards[-1].stop == total
    assert all(a.stop == b.start for a, b in pairwise(shards))
    lengths = [s.length for s in shards]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


def test_published_shapes() -> None:
    """Wan 1.3B at 832x480x81 has 32,760 tokens, 14B at 1280x720x81 has 75,600."""
    for (width, height), tokens in {(832, 480): 32760, (1280, 720): 75600}.items():
        shape = LatentShape.from_pixels(num_frames=81, height=height, width=width, temporal_factor=4, spatial_factor=8)
        assert shape.frames == 21
        assert shape.tokens((1, 2, 2)).num_tokens == tokens


def test_one_frame_is_one_latent_frame() -> None:
    shape = LatentShape.from_pixels(num_frames=1, height=64, width=64, temporal_factor=4, spatial_factor=8)
    assert shape == LatentShape(1, 8, 8)


def test_frame_span_is_the_smallest_that_holds_the_shard() -> None:
    grid = TokenGrid(5, 5, 7)
    for parts in (1, 2, 3, 4, 200):
        for shard in split_evenly(grid.num_tokens, parts):
            first, last = grid.frame_span(shard)
            frames = {token // 35 for token in range(shard.start, shard.stop)}
            assert frames == set(range(first, last))
    assert grid.frame_span(Shard(175, 0)) == (0, 0)
