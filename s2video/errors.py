"""The exceptions of this project.

S2VideoError            anything s2video stops for on purpose; exit code 1
├── InputError          the user's input cannot be used as it is; exit code 2
├── AgreementError      ranks do not run the same job
├── NumericalError      NaN or infinity where numbers were expected
└── StoppedError        SIGTERM or a caller's wish, at the end of a step; exit code 143
"""


class S2VideoError(Exception):
    """Base class; the message is written for the person who started the run.

    Attributes:
        told: another rank of this host says the same, so this one need not; None where there is no other to ask.
    """

    told: bool | None = None


class InputError(S2VideoError, ValueError):
    """Input that cannot be used: the message says what was expected, what got, and what to do."""


class AgreementError(S2VideoError):
    """Ranks of one run differ in job, masks, shapes or versions."""


class NumericalError(S2VideoError):
    """A tensor became NaN or infinite; the message names the step."""


class StoppedError(S2VideoError):
    """The run was asked to stop, and did at the end of a step; the message says how it goes on."""


def out_of_memory(error: BaseException) -> str:
    """What to say of torch.OutOfMemoryError."""
    first_line = str(error).split(". ")[0]
    return (
        f"the GPU's memory is full ({first_line}): use more GPUs (launch --nproc), fewer frames or pixels, "
        "model.dtype bfloat16, model.offload_text_encoder true, or model.stream_text_encoder true"
    )
