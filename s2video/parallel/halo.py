"""A picture cut into strips, one a rank, and the rows of its neighbours that a rank's convolution reaches into.

Strips lie along one dimension, in rank order; "rows" are the entries along it, be they rows or columns of the
picture. Knows no model.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .mesh import Axis
from .traffic import record


def fill_halos(padded: Tensor, dim: int, width: int, axis: Axis) -> None:
    """Write the neighbours' nearest rows over the first and the last `width` rows of this rank's padded strip.

    The first and the last rank have a neighbour on one side only: where the picture ends, the padding stays as it is.

    Args:
        padded: the strip with `width` rows of padding at both ends of `dim`, changed in place. Between them every rank
            has at least `width` rows of its own; along the other dimensions all ranks have the same sizes.
    """
    if axis.size == 1:
        return
    assert axis.group is not None
    length = padded.shape[dim] - 2 * width
    assert length >= width, (length, width)
    transfers: list[dist.P2POp] = []
    arrivals: list[tuple[Tensor, Tensor]] = []
    sent = 0
    for neighbour, halo, edge in ((axis.rank - 1, 0, width), (axis.rank + 1, width + length, length)):
        if not 0 <= neighbour < axis.size:
            continue
        peer = dist.get_global_rank(axis.group, neighbour)
        outgoing = padded.narrow(dim, edge, width).contiguous()
        incoming = torch.empty_like(outgoing)
        transfers += [
            dist.P2POp(dist.isend, outgoing, peer, axis.group),
            dist.P2POp(dist.irecv, incoming, peer, axis.group),
        ]
        arrivals.append((padded.narrow(dim, halo, width), incoming))
        sent += outgoing.nbytes
    record("send", sent)
    for request in dist.batch_isend_irecv(transfers):
        request.wait()
    for place, rows in arrivals:
        place.copy_(rows)
