"""Tests of degrees: the size of each axis, and the errors for degrees that do not fit."""

import math
from datetime import timedelta

import pytest
import torch

from s2video.config.run import RunConfig
from s2video.config.sections import ParallelConfig
from s2video.errors import InputError
from s2video.models.limits import CheckpointInfo, check_request
from s2video.parallel import mesh as mesh_module
from s2video.parallel.mesh import Mesh, axis_groups, choose_backend, resolve_degrees
from s2video.parallel.statuses import Limits
from s2video.parallel.watch import Watch

CHECKPOINT = CheckpointInfo(num_blocks=6, patch_size=(1, 2, 2), max_positions=64, spatial_factor=8, temporal_factor=4)


@pytest.mark.parametrize(
    ("ring", "ulysses", "world_size", "expected"),
    [
        (None, None, 1, (1, 1)),
        (None, None, 6, (1, 6)),
        (None, 2, 6, (3, 2)),
        (3, None, 6, (3, 2)),
        (6, None, 6, (6, 1)),
        (2, 3, 6, (2, 3)),
    ],
)
def test_a_degree_left_out_follows(
    ring: int | None, ulysses: int | None, world_size: int, expected: tuple[int, int]
) -> None:
    degrees = resolve_degrees(ParallelConfig(ring=ring, ulysses=ulysses), world_size)
    assert list(degrees.items()) == [("ring", expected[0]), ("ulysses", expected[1]), ("branch", 1)]


def test_a_branch_axis_halves_the_rest() -> None:
    for ring, ulysses, expected in ((None, None, (1, 4, 2)), (2, None, (2, 2, 2)), (None, 2, (2, 2, 2))):
        degrees = resolve_degrees(ParallelConfig(ring=ring, ulysses=ulysses, branch=2), 8)
        assert tuple(degrees.values()) == expected


@pytest.mark.parametrize(
    ("ring", "ulysses", "world_size", "message"),
    [
        (None, None, 3, "branch 2 must divide the number of ranks, 3; start 2 rank"),
        (2, 2, 4, "ring 2 × ulysses 2 × branch 2 = 8 must equal the number of ranks, 4"),
        (3, None, 8, "ring 3 × branch 2 = 6 must divide the number of ranks, 8"),
    ],
)
def test_a_branch_axis_that_does_not_fit_is_refused(
    ring: int | None, ulysses: int | None, world_size: int, message: str
) -> None:
    parallel = ParallelConfig(ring=ring, ulysses=ulysses, branch=2)
    with pytest.raises(InputError) as caught:
        check_request(RunConfig(parallel=parallel), CHECKPOINT, world_size=world_size)
    assert message in str(caught.value)


def test_a_branch_axis_without_uncond_is_refused_with_the_reason() -> None:
    config = RunConfig.model_validate({"guidance": {"cfg_scale": 1}, "parallel": {"branch": 2}})
    with pytest.raises(InputError, match=r"guidance\.cfg_scale 1 makes no uncond"):
        check_request(config, CHECKPOINT, world_size=2)


@pytest.mark.parametrize(
    ("ring", "ulysses", "world_size", "message"),
    [
        (2, 3, 4, "ring 2 × ulysses 3 = 6 must equal the number of ranks, 4; start 6 rank"),
        (2, 2, 8, "ring 2 × ulysses 2 = 4 must equal the number of ranks, 8; start 4 rank"),
        (None, 3, 4, "ulysses 3 must divide the number of ranks, 4"),
        (3, None, 4, "ring 3 must divide the number of ranks, 4"),
        (2, None, 1, "ring 2 must divide the number of ranks, 1"),
    ],
)
def test_a_product_that_is_not_the_world_is_refused(
    ring: int | None, ulysses: int | None, world_size: int, message: str
) -> None:
    parallel = ParallelConfig(ring=ring, ulysses=ulysses)
    with pytest.raises(InputError) as caught:
        resolve_degrees(parallel, world_size)
    assert message in str(caught.value)
    with pytest.raises(InputError) as checked:
        check_request(RunConfig(parallel=parallel), CHECKPOINT, world_size=world_size)
    assert str(checked.value) == str(caught.value)


def test_a_ring_needs_a_kernel_with_a_log_sum_exp() -> None:
    values = {"model": {"attention_backend": "xformers"}, "parallel": {"ring": 2}}
    with pytest.raises(InputError, match="log-sum-exp"):
        check_request(RunConfig.model_validate(values), CHECKPOINT, world_size=2)
    values["parallel"]["ring"] = 1
    check_request(RunConfig.model_validate(values), CHECKPOINT, world_size=2)


@pytest.mark.parametrize(
    ("device", "parallel", "expected"),
    [
        ("cpu", {}, "gloo"),
        ("cuda:1", {}, "nccl"),
        ("cuda", {"backend": "nccl"}, "nccl"),
        ("cpu", {"backend": "nccl"}, "expected gloo or auto on cpu, got nccl"),
        ("cuda", {"backend": "gloo"}, "expected nccl or auto on cuda, got gloo: gloo cannot send GPU tensors"),
        ("cuda", {"timeout_seconds": 60}, "parallel.timeout_seconds: expected at least 120 with nccl"),
        ("cpu", {"timeout_seconds": 1}, "gloo"),
    ],
)
def test_each_device_has_its_backend(device: str, parallel: dict[str, object], expected: str) -> None:
    def choose() -> str:
        return choose_backend(ParallelConfig.model_validate(parallel), torch.device(device))

    if expected in ("gloo", "nccl"):
        assert choose() == expected
        return
    with pytest.raises(InputError) as caught:
        choose()
    assert expected in str(caught.value)


def test_a_gpu_run_with_gloo_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    config = RunConfig.model_validate({"model": {"device": "cuda"}, "parallel": {"backend": "gloo"}})
    with pytest.raises(InputError, match="got gloo"):
        check_request(config, CHECKPOINT, world_size=2)
    check_request(config, CHECKPOINT, world_size=1)  # one process sends nothing


def test_nccl_waits_longer_than_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise NCCL would abort the process before the watch can name the rank that is behind."""
    limits: list[float] = []
    watched: list[float | None] = []

    class Joined(Exception):
        pass

    def connect(rank: int, size: int, rules: Limits) -> Watch:
        watched.append(rules.longest_step)
        return Watch(store=torch.distributed.HashStore())

    def init_process_group(backend: str, timeout: timedelta, **_: object) -> None:
        limits.append(timeout.total_seconds())
        raise Joined

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mesh_module.dist, "init_process_group", init_process_group)
    monkeypatch.setattr(mesh_module.dist, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 0, 2)]))
    monkeypatch.setattr(mesh_module, "connect", connect)
    monkeypatch.setattr(mesh_module.torch.cuda, "set_device", lambda device: None)
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(mesh_module, "resolve_device", lambda name: torch.device(name))
        with pytest.raises(Joined), mesh_module.init_mesh(ParallelConfig(timeout_seconds=300), device):
            pass
    assert limits == [360, 300] and watched == [300, None]


def test_one_process_is_a_mesh_of_ones() -> None:
    mesh = Mesh(torch.device("cpu"))
    assert mesh.describe() == {"world_size": 1, "ring": 1, "ulysses": 1, "branch": 1, "backend": None, "device": "cpu"}


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [((1, 1, 1), 0), ((1, 8, 1), 1), ((8, 1, 1), 1), ((2, 4, 1), 3), ((1, 4, 2), 3), ((4, 1, 2), 3), ((2, 2, 2), 6)],
)
def test_axes_of_the_same_ranks_share_a_communicator(degrees: tuple[int, int, int], expected: int) -> None:
    """Each one has hundreds of megabytes of buffers with NCCL."""
    groups = axis_groups(dict(zip(("ring", "ulysses", "branch"), degrees, strict=True))).values()
    apart = {ranks for ranks in groups if len(ranks[0]) > 1}
    whole = {(tuple(range(math.prod(degrees))),)}  # the default group
    assert len(apart | whole if apart else apart) == expected


def test_groups_of_each_axis() -> None:
    assert axis_groups({"ring": 2, "ulysses": 2, "branch": 2}) == {
        "ring": ((0, 4), (1, 5), (2, 6), (3, 7)),
        "ulysses": ((0, 2), (1, 3), (4, 6), (5, 7)),
        "sequence": ((0, 2, 4, 6), (1, 3, 5, 7)),
        "merged": ((0, 1, 2, 3), (4, 5, 6, 7)),
        "branch": ((0, 1), (2, 3), (4, 5), (6, 7)),
    }
