"""Lines that other libraries log when they are imported, and that are of no use to the person who runs s2video.

diffusers imports torchao wherever it is installed. torchao then logs that its kernels for other GPUs cannot be loaded,
and what it registers in an older way with torch.
"""

import logging

_OF_NO_USE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "<enum ",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}


class _Without(logging.Filter):
    """Leaves out messages that start with a text."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._start)


def quiet_imports() -> None:
    """Leave out those lines, and no others, from now on."""
    for name, start in _OF_NO_USE.items():
        logging.getLogger(name).addFilter(_Without(start))
