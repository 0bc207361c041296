"""The arguments of a batch on a Ray cluster."""

from __future__ import annotations

import argparse
from typing import get_args

from ..errors import InputError
from ..fleet.keeper import Files
from ..fleet.run import RayOptions
from .arguments import whole_number


def add_ray_arguments(batch: argparse.ArgumentParser) -> None:
    """Add them to the parser of `batch`."""
    ray = batch.add_argument_group("machines of a Ray cluster (needs the extra `ray`)")
    ray.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run the replicas on a cluster: HOST:PORT of its head, auto for the one of this machine, or local (also "
        "without ADDRESS) to start one on this machine for this batch",
    )
    ray.add_argument("--span-nodes", action="store_true", help="the ranks of a replica may be on several machines")
    ray.add_argument("--rank-cpus", type=whole_number, metavar="N", help="cores of each rank (default: 1)")
    ray.add_argument(
        "--ray-files",
        choices=get_args(Files),
        help="shared: all machines see the batch's folder; collect: files are brought to this machine; auto (the "
        "default): each machine looks",
    )


def ray_options(arguments: argparse.Namespace, *, is_rank: bool) -> RayOptions | None:
    """Return how the batch runs on Ray; None if it does not. Raises InputError."""
    if arguments.ray is None:
        given = {"--span-nodes": arguments.span_nodes, "--rank-cpus": arguments.rank_cpus}
        given |= {"--ray-files": arguments.ray_files}
        for option, value in given.items():
            if value:
                raise InputError(
                    f"{option}: expected --ray, which it belongs to, got none; add --ray local, or leave it out"
                )
        return None
    if is_rank or arguments.shard is not None:
        other = "torchrun" if is_rank else "--shard"
        raise InputError(f"--ray: expected no {other}, got both; Ray gives each replica its jobs and its machine")
    options = RayOptions(
        arguments.ray,
        arguments.replicas,
        arguments.nproc,
        arguments.rank_cpus if arguments.rank_cpus is not None else 1,
        arguments.span_nodes,
        arguments.ray_files or "auto",
    )
    options.check()
    return options
