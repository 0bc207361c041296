"""Text files from outside: read within a bound on bytes, as UTF-8; every failure is one InputError."""

from pathlib import Path

from ..errors import InputError

MAX_BYTES = 32 * 2**20


def read_text_file(path: Path, name: str, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. A pipe, such as /dev/stdin, is read too.

    Args:
        name: what the file is, for the message, such as "config file" or "--prompt-file".

    Raises:
        InputError: a file that is missing, cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise InputError(f"{name} {path}: expected at most {max_bytes} bytes of text, got more; split it")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise InputError(f"{name} {path} does not exist ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} {path}: expected UTF-8, got another byte at {error.start}; save it as UTF-8"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} {path}: cannot be read ({reason}); check the path") from None
