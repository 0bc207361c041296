"""Exchange of halos between strips of a picture, one strip per rank, for convolutions that read neighbouring rows.

Strips follow each other along one dimension, in rank order. "Rows" are the entries along it, whether rows or columns of
the picture. Knows no model.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .mesh import Axis
from .traffic import record


def fill_halos(padded: Tensor, dim: int, width: int, axis: Axis) -> None:
    """Write the neighbours' nearest rows over the first and the last `width` rows of this rank's padded strip.

    The first and the last rank have one neighbour only; at the picture's border the padding is kept.

    Args:
        padded: the strip with `width` rows of padding at both ends of `dim`, changed in place. Every rank needs at
            least `width` rows between them; along the other dimensions all ranks have the same sizes.
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
    for target, rows in arrivals:
        target.copy_(rows)
