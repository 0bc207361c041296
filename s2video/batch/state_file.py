"""The state of a batch as a file: SQLite, whose connections, transactions and version are here, and its checksums.

Knows neither jobs nor who draws them.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ..errors import InputError, S2VideoError
from ..system.files import atomic_path
from .records import SCHEMA, SCHEMA_VERSION
from .run_file import RESERVED

_STATE_FILE = re.compile(rf"{re.escape(RESERVED)}(?:(\d+)-of-(\d+)\.)?sqlite", re.ASCII)


class StateFile:
    """The file of one shard. Any thread and process can open it.

    Args:
        folder: the batch's folder.
        shard: (i, n), if n machines share the batch; None for the whole batch.
        keeps_open: keep one connection for all transactions, until `close`. For a process that has thousands of them,
            and is the only one to write.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None = None, *, keeps_open: bool = False) -> None:
        self._part = RESERVED if shard is None else f"{RESERVED}{shard[0]}-of-{shard[1]}."
        self.folder = folder
        self.path = folder / f"{self._part}sqlite"
        self.checksums_path = folder / f"{self._part}sha256"
        self._is_shared = shard is not None
        self._keeps_open = keeps_open
        self._kept: sqlite3.Connection | None = None
        self._guard = threading.RLock()  # of the connection that is kept

    def create(self) -> None:
        """Create the file if it is missing. Raises InputError if this is impossible."""
        self.create_folder()
        try:
            with self._connected() as connection:
                # shards may be on a network file system, where WAL does not work because it needs shared memory
                connection.execute(f"PRAGMA journal_mode = {'DELETE' if self._is_shared else 'WAL'}")
                self._check_version(connection)
                connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")  # a reader sees all tables or none
                if "take" not in {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}:
                    connection.execute("ALTER TABLE jobs ADD COLUMN take TEXT")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except S2VideoError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.path}: expected a usable state of a batch, got an error ({error}); choose another folder"
            ) from None

    def create_folder(self) -> None:
        """Create the batch's folder if it is missing. Raises InputError if this is impossible."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: expected a usable folder, got an error ({error.strerror}); choose another folder"
            ) from None

    def check(self) -> None:
        """Raise InputError if a newer version of s2video wrote the file, or a start of the batch is creating it."""
        with self._connected() as connection:
            self._check_version(connection)
            if connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
                raise InputError(
                    f"{self.folder}: expected a batch that has begun, got an empty {self.path.name}; try again in a "
                    "moment, or start the batch"
                )

    def _check_version(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{self.path}: expected a batch of schema {SCHEMA_VERSION} or older, got {version}; use the newer "
                "s2video that wrote it, or another folder"
            )

    def _append_checksums(self, digests: Mapping[str, str]) -> bool:
        """Add lines to the checksums; False if there is no file yet. A failed write leaves it as it was."""
        if not self.checksums_path.exists():
            return False
        size = self.checksums_path.stat().st_size
        try:
            with self.checksums_path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())))
        except OSError as error:
            os.truncate(self.checksums_path, size)
            raise S2VideoError(f"{self.checksums_path}: {error.strerror}; check the disk and its free space") from error
        return True

    @staticmethod
    def _has_table(connection: sqlite3.Connection, name: str) -> bool:
        """Whether the file has a table that older versions do not make."""
        return connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None

    def _write_checksums(self, connection: sqlite3.Connection) -> None:
        """Write the checksums in the format of `sha256sum --check`, relative to the batch's folder."""
        rows = connection.execute("SELECT path, sha256 FROM files ORDER BY path").fetchall()
        with atomic_path(self.checksums_path) as temporary:
            temporary.write_text("".join(f"{row['sha256']}  {row['path']}\n" for row in rows), encoding="utf-8")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open a connection.

        Raises:
            InputError: the file is damaged, or is not that of a batch.
            S2VideoError: other errors of SQLite, such as a full disk.
        """
        try:
            if self._keeps_open:
                with self._guard:
                    self._kept = self._kept or self._connect()
                    yield self._kept
            else:
                with closing(self._connect()) as connection:
                    yield connection
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _FOREIGN:
                raise _not_ours(self.path, error) from error
            raise S2VideoError(f"{self.path}: {error}; check the disk and its free space") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=60, isolation_level=None, check_same_thread=not self._keeps_open
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            if self._keeps_open:
                # Wait for the disk only when the log is folded into the file. A power failure can undo the last
                # transactions, which damages nothing: the videos that they recorded are found by their sidecars.
                connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection that is kept, if there is one."""
        with self._guard:
            if self._kept is not None:
                self._kept.close()
            self._kept = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


_FOREIGN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)


def _not_ours(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path}: expected the state of a batch, got another or a damaged file ({reason}); restore it, or choose "
        "another folder"
    )


def recorded_run_file(path: Path) -> Path | None:
    """Return the run file that a store's file belongs to; None if that is unknown, as in a damaged or an older one."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
        row = store.execute("SELECT value FROM about WHERE key = 'run file'").fetchone()
        if row is not None:
            return Path(os.path.normpath(path.parent.resolve() / row[0]))
    return None


def has_store(folder: Path) -> bool:
    """Return whether a folder is that of a batch."""
    return bool(state_files(folder))


def state_files(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """Return the SQLite files of a batch in a folder, and the shard (i, n) of each; others are left out."""
    found: dict[Path, tuple[int, int] | None] = {}
    for path in sorted(folder.glob(f"{RESERVED}*sqlite")):
        if (match := _STATE_FILE.fullmatch(path.name)) is not None:
            found[path] = (int(match[1]), int(match[2])) if match[1] else None
    return found
