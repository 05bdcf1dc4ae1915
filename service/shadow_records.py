"""What champion and shadow said of the same customers, kept on disk for the verdict: append-only files of lines.

A file belongs to one process and one pair of versions. Its first line says what is compared; each further line holds
some rows in columns: little-endian arrays, in base64, for a fifth of what their digits would take.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from feature_client.contract import Contract, Task
from feature_client.errors import RapportError

FORMAT = 1
FILE_BYTES = 64 * 1024**2
"""Beyond it a process begins another file: about a million rows."""

PAIR_BYTES = 512 * 1024**2
"""All files of a pair, of all processes that ever wrote one: beyond it the oldest go."""

HASH_BYTES = 8
SALT_BYTES = 16
SALT = "salt"

OK, DEGRADED, UNKNOWN = 0, 1, 2
"""Status of a row, as in an answer: every feature present and fresh; some not; no stored row at all."""

Values = Sequence[str | int]
"""An entity: its join keys in the plan's order."""


class PairsError(RapportError):
    """Kept pairs that cannot be read, or are not there."""


class Side(msgspec.Struct, frozen=True):
    """One of the two versions: what its columns mean."""

    version: str
    contract: str  # digest
    tasks: tuple[Task, ...]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, version: str, contract: Contract) -> "Side":
        return cls(version, contract.digest, contract.tasks, tuple(contract.schema.groups))


class Heading(msgspec.Struct, frozen=True):
    """The first line of a file."""

    model: str
    champion: Side
    shadow: Side
    format: int = FORMAT


class Answers(msgspec.Struct, frozen=True):
    """Of one version. scores: float32 [rows, its tasks], NaN where it has none. statuses: uint8 [rows].

    attributions: float32 [explained rows, its tasks, its groups]; of the scores of the explanation graph.
    seconds: of one inference of the score graph on these rows; None where it was not timed.
    """

    scores: bytes
    statuses: bytes
    attributions: bytes = b""
    seconds: float | None = None


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some rows. at, as_of: epoch seconds of the wall clock, and of the features. entities: HASH_BYTES a row.

    explained: positions of the rows with attributions. own_read: the shadow read for itself, a moment later.
    failed, incomparable: rows that are in no column: the shadow had no answer, or not to the same question.
    """

    at: float
    as_of: float
    rows: int = 0
    entities: bytes = b""
    champion: Answers | None = None
    shadow: Answers | None = None
    explained: tuple[int, ...] = ()
    own_read: bool = False
    failed: int = 0
    incomparable: int = 0


class PairLog:
    """Appends the lines of one pair. For one thread, which may block; every method may raise OSError."""

    def __init__(self, directory: Path, heading: Heading) -> None:
        self.directory = directory
        self.heading = heading
        self.stem = f"{heading.model}.{heading.champion.version}-{heading.shadow.version}."
        self._process = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._files = 0
        self._descriptor: int | None = None
        self._written = 0
        self._is_torn = False
        self._salt = b""

    def append(self, line: Line, entities: Sequence[Values]) -> None:
        """entities: of the line's rows; only their salted hashes are written."""
        if self._descriptor is None or self._written >= FILE_BYTES:
            self._open()
        hashes = b"".join(hash_of(values, self._salt) for values in entities)
        self._write(msgspec.json.encode(msgspec.structs.replace(line, entities=hashes)))

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> None:
        self.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._salt = _salt(self.directory)
        _make_room(self.directory, self.stem)
        path = self.directory / f"{self.stem}{self._process}-{self._files}.jsonl"
        self._files += 1
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._written, self._is_torn = 0, False
        try:
            self._write(msgspec.json.encode(self.heading))
        except OSError:
            self.close()  # nobody could read lines without it
            raise

    def _write(self, line: bytes) -> None:
        """The line as a whole; where only a part of it could be written, the next one begins on a line of its own."""
        assert self._descriptor is not None  # noqa: S101  (append opens it)
        left = memoryview((b"\n" if self._is_torn else b"") + line + b"\n")
        self._is_torn = True
        while left:
            written = os.write(self._descriptor, left)
            self._written += written
            left = left[written:]
        self._is_torn = False


def hash_of(values: Values, salt: bytes) -> bytes:
    return hashlib.blake2b(repr(tuple(values)).encode(), digest_size=HASH_BYTES, key=salt).digest()


def _salt(directory: Path) -> bytes:
    """Shared by all processes that write here, so that a customer is the same in all files, and in no other place."""
    path = directory / SALT
    for _ in range(2):
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            mine = directory / f".{SALT}-{secrets.token_hex(4)}"
            mine.touch(0o600)
            try:
                mine.write_bytes(secrets.token_bytes(SALT_BYTES))
                path.hardlink_to(mine)  # whole or not at all, and never over another's
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        else:
            if len(found) == SALT_BYTES:
                return found
            break
    raise OSError(f"{path} is not a salt")


def _make_room(directory: Path, stem: str) -> None:
    """Deletes the oldest files of a pair until another one fits."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in directory.glob(f"{stem}*.jsonl"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total + FILE_BYTES <= PAIR_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


@dataclass(frozen=True, eq=False)
class Explained:
    """Attributions of both versions for the same rows, as float64. rows: positions among the pairs."""

    rows: npt.NDArray[np.intp]
    champion: npt.NDArray[np.float64]  # [explained, champion's tasks, champion's groups]
    shadow: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """All that was kept of a pair, in the order of time.

    timed: [batches, 3]: rows, seconds of the champion, seconds of the shadow.
    failed, incomparable: rows without a pair. damaged: lines that cannot be read. older: files of other contracts.
    """

    heading: Heading
    at: npt.NDArray[np.float64]
    entities: npt.NDArray[np.uint64]
    champion: npt.NDArray[np.float64]  # scores [rows, champion's tasks]
    shadow: npt.NDArray[np.float64]
    champion_statuses: npt.NDArray[np.uint8]
    shadow_statuses: npt.NDArray[np.uint8]
    explained: Explained
    timed: npt.NDArray[np.float64]
    failed: int
    incomparable: int
    own_reads: int
    damaged: int
    older: int

    def __len__(self) -> int:
        return len(self.at)


def read_pairs(directory: Path, model: str, champion: str, shadow: str) -> Pairs:
    """Lines that are torn or damaged are left out and counted. Raises PairsError where there is nothing."""
    stem = f"{model}.{champion}-{shadow}."
    damaged = older = 0
    heading: Heading | None = None
    lines: list[Line] = []
    try:
        files = sorted(directory.glob(f"{stem}*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files:
            found, read, unreadable = _read_file(path)
            damaged += unreadable
            if found is None:
                continue
            heading = heading or found
            if found == heading:
                lines += read
            else:
                older += 1
    except OSError as exc:
        raise PairsError(f"{directory} cannot be read: {exc.strerror or exc}") from exc
    if heading is None:
        raise PairsError(
            f"{directory} holds no pairs of {model} {champion} and {shadow}: the gateway keeps them where "
            f"RAPPORT_SHADOW_DIR says, while routes.toml names {shadow} as a shadow of {champion}"
        )
    return _pairs(heading, lines, damaged, older)


def _read_file(path: Path) -> tuple[Heading | None, list[Line], int]:
    """heading: None where the file has none that can be read."""
    lines, damaged = [], 0
    heading: Heading | None = None
    with path.open("rb") as file:
        for number, text in enumerate(file):
            try:
                if number == 0:
                    heading = msgspec.json.decode(text, type=Heading)
                    if heading.format != FORMAT:
                        raise PairsError(f"{path} has format {heading.format}; this version reads {FORMAT}")
                elif heading is not None:
                    lines.append(_checked(msgspec.json.decode(text, type=Line), heading))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
                damaged += 1
    return heading, lines, damaged


def _checked(line: Line, heading: Heading) -> Line:
    """Raises ValueError where a column is not as long as it must be."""
    if len(line.entities) != HASH_BYTES * line.rows or not all(0 <= row < line.rows for row in line.explained):
        raise ValueError
    for side, answers in ((heading.champion, line.champion), (heading.shadow, line.shadow)):
        tasks, groups = len(side.tasks), len(side.groups)
        found = answers or Answers(b"", b"")
        if (len(found.scores), len(found.statuses), len(found.attributions)) != (
            4 * line.rows * tasks,
            line.rows,
            4 * len(line.explained) * tasks * groups,
        ):
            raise ValueError
    return line


def _pairs(heading: Heading, lines: list[Line], damaged: int, older: int) -> Pairs:
    lines.sort(key=lambda line: line.at)
    starts = np.cumsum([0, *(line.rows for line in lines)])
    explained = [start + row for start, line in zip(starts.tolist(), lines, strict=False) for row in line.explained]
    columns = []
    for which, side in (("champion", heading.champion), ("shadow", heading.shadow)):
        answers: list[Answers] = [a for line in lines if (a := getattr(line, which)) is not None]
        columns.append(
            (
                _floats([a.scores for a in answers]).reshape(-1, len(side.tasks)),
                np.frombuffer(b"".join(a.statuses for a in answers), np.uint8),
                _floats([a.attributions for a in answers]).reshape(len(explained), len(side.tasks), len(side.groups)),
            )
        )
    (champion, champion_statuses, champion_why), (shadow, shadow_statuses, shadow_why) = columns
    return Pairs(
        heading,
        at=np.repeat([line.at for line in lines], [line.rows for line in lines]),
        entities=np.frombuffer(b"".join(line.entities for line in lines), np.dtype("<u8")),
        champion=champion,
        shadow=shadow,
        champion_statuses=champion_statuses,
        shadow_statuses=shadow_statuses,
        explained=Explained(np.array(explained, dtype=np.intp), champion_why, shadow_why),
        timed=np.array(list(_timed(lines))).reshape(-1, 3),
        failed=sum(line.failed for line in lines),
        incomparable=sum(line.incomparable for line in lines),
        own_reads=sum(line.rows for line in lines if line.own_read),
        damaged=damaged,
        older=older,
    )


def _timed(lines: Sequence[Line]) -> Iterator[tuple[int, float, float]]:
    for line in lines:
        if line.champion and line.shadow and line.champion.seconds is not None and line.shadow.seconds is not None:
            yield line.rows, line.champion.seconds, line.shadow.seconds


def _floats(parts: Sequence[bytes]) -> npt.NDArray[np.float64]:
    return np.frombuffer(b"".join(parts), np.dtype("<f4")).astype(np.float64)
