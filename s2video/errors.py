"""The exceptions of this project.

S2VideoError            every error that s2video raises on purpose; exit code 1
├── InputError          the user's input cannot be used; exit code 2
├── AgreementError      ranks do not run the same job
├── NumericalError      NaN or infinity where finite numbers were expected
├── FollowUpError       another rank failed, and says why
└── StoppedError        stopped after a step, by a signal or by the caller; exit code 143, or 128 + the signal
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGTERM


class S2VideoError(Exception):
    """Base class of all errors of this project. The message is for the person who started the run.

    Attributes:
        is_reported: whether another rank of this host prints the same message; None if the ranks did not settle this.
    """

    is_reported: bool | None = None


class InputError(S2VideoError, ValueError):
    """Input that cannot be used. The message states what was expected, what was got, and what to do."""


class AgreementError(S2VideoError):
    """Ranks of one run differ in job, masks, shapes or versions."""


class NumericalError(S2VideoError):
    """A tensor has NaN or infinite values. The message names the step."""


class FollowUpError(S2VideoError):
    """A rank ends because another one failed, whose own error says why."""


class StoppedError(S2VideoError):
    """The run stopped on request after a step. The message states how to resume.

    Attributes:
        signal: number of the signal that asked for it.
    """

    signal: int = int(SIGTERM)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: Python's, torch's on the CPU, which is a plain RuntimeError, or a GPU's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def out_of_memory(error: BaseException, advice: str = "") -> str:
    """Return the message for an error of which `is_out_of_memory` is true.

    Args:
        advice: its end for a GPU, such as settings that would fit (`planning.fits.advice`).
    """
    first_line = str(error).split(". ")[0]
    if type(error).__name__ != "OutOfMemoryError":
        first_line = first_line.rpartition("] ")[2].replace("DefaultCPUAllocator: ", "")
        return (
            f"this machine is out of memory ({first_line or 'Python could not allocate'}); use fewer ranks, frames or "
            "pixels, model.dtype bfloat16, or a machine with more memory"
        )
    return (
        f"the GPU is out of memory ({first_line}); use more GPUs (launch --nproc), fewer frames or pixels, "
        f"model.dtype bfloat16, model.offload_text_encoder true, or model.stream_text_encoder true{advice}"
    )


@contextmanager
def memory_reported(advise: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors of the block that mean "out of memory" into an S2VideoError, which is one line without traceback.

    Args:
        advise: returns the `advice` of `out_of_memory`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise S2VideoError(out_of_memory(error, advise())) from error
