"""What is kept of a shadow: read back as it was written, whatever became of the file meanwhile."""

import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest

import service.shadow_records
from feature_client.contract import Task
from service.shadow_records import Answers, Heading, Line, PairLog, PairsError, Side, hash_of, read_pairs

TASKS = (Task("buys", "Buys", "probability", "probability", 30), Task("spends", "Spends", "amount", "GBP", 90))
HEADING = Heading("m", Side("1", "a", TASKS, ("recency", "spend")), Side("2", "b", TASKS[:1], ("recency",)))


def line_of(at: float, rows: int, *, seconds: float | None = None, explained: tuple[int, ...] = ()) -> Line:
    scores = np.arange(2 * rows, dtype="<f4").reshape(rows, 2) + at
    scores[0, 1] = np.nan
    why = len(explained)
    return Line(
        at,
        at - 1,
        rows,
        champion=Answers(scores.tobytes(), bytes(rows), np.ones((why, 2, 2), "<f4").tobytes(), seconds),
        shadow=Answers(
            (scores[:, :1] * 2).tobytes(), bytes([1] * rows), np.ones((why, 1, 1), "<f4").tobytes(), seconds
        ),
        explained=explained,
    )


def names(*customers: int) -> list[tuple[str]]:
    return [(f"c{customer}",) for customer in customers]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = PairLog(tmp_path / "new", HEADING)
    log.append(line_of(20.0, 2, seconds=0.5, explained=(1,)), names(1, 2))
    log.append(Line(21.0, 0.0, failed=3), [])
    log.append(Line(22.0, 0.0, incomparable=4), [])
    log.append(line_of(10.0, 1), names(3))
    log.close()

    pairs = read_pairs(tmp_path / "new", "m", "1", "2")

    assert pairs.heading == HEADING
    assert pairs.at.tolist() == [10, 20, 20]  # in the order of time
    np.testing.assert_array_equal(pairs.champion, [[10, np.nan], [20, np.nan], [22, 23]])
    np.testing.assert_array_equal(pairs.shadow, [[20], [40], [44]])
    assert pairs.shadow_statuses.tolist() == [1, 1, 1]
    assert pairs.explained.rows.tolist() == [2]
    assert pairs.explained.champion.shape == (1, 2, 2)
    assert pairs.timed.tolist() == [[2, 0.5, 0.5]]
    assert (pairs.failed, pairs.incomparable, pairs.damaged, pairs.older) == (3, 4, 0, 0)
    assert len(set(pairs.entities.tolist())) == 3


def write(directory: Path, customer: int) -> None:
    log = PairLog(directory, HEADING)
    log.append(line_of(float(customer), 1), names(7))
    log.close()


def test_processes_that_begin_together_name_a_customer_alike(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write, args=(tmp_path, number)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert len(pairs) == 6
    assert len(set(pairs.entities.tolist())) == 1
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"} == {"salt"}


def test_another_salt_another_name() -> None:
    assert hash_of(("c1",), b"a") != hash_of(("c1",), b"b") != hash_of(("c2",), b"b")
    assert hash_of((1,), b"a") != hash_of(("1",), b"a")


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path, cut: int) -> None:
    log = PairLog(tmp_path, HEADING)
    for at in (1.0, 2.0):
        log.append(line_of(at, 1), names(1))
    log.close()
    [path] = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-cut] if cut > 1 else path.read_bytes()[:-1][:-1])

    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert (len(pairs), pairs.damaged) == (1, 1)


@pytest.mark.parametrize(
    "damage",
    [b"{}\n", b"\n", b"null\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"at": 1, "as_of": 1, "rows": 5}\n',
     b'{"at": 1, "as_of": 1, "explained": [3]}\n'],
)  # fmt: skip
def test_damage_in_the_middle_takes_only_its_own_line(tmp_path: Path, damage: bytes) -> None:
    log = PairLog(tmp_path, HEADING)
    log.append(line_of(1.0, 1), names(1))
    log.close()
    [path] = tmp_path.glob("*.jsonl")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + second)

    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert (len(pairs), pairs.damaged) == (1, 1)


def test_after_a_write_that_failed_halfway_the_next_line_is_whole(tmp_path: Path) -> None:
    """As on a full disk: the file may grow no further than into the middle of a line."""
    log = PairLog(tmp_path, HEADING)
    log.append(line_of(1.0, 1), names(1))
    [path] = tmp_path.glob("*.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append(line_of(2.0, 1), names(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(line_of(3.0, 1), names(3))
    log.close()

    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert pairs.at.tolist() == [1, 3]
    assert pairs.damaged == 1


def test_files_are_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.shadow_records, "FILE_BYTES", 4_000)
    monkeypatch.setattr(service.shadow_records, "PAIR_BYTES", 12_000)
    log = PairLog(tmp_path, HEADING)
    for at in range(200):
        log.append(line_of(float(at), 4), names(*range(4)))
    log.close()

    files = list(tmp_path.glob("*.jsonl"))
    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert 2 <= len(files) <= 4
    assert sum(path.stat().st_size for path in files) < 12_000 + 4_000
    assert pairs.at[-1] == 199
    assert pairs.damaged == 0
    assert len(pairs) < 800


def test_pairs_of_other_contracts_are_not_mixed_in(tmp_path: Path) -> None:
    before = Heading("m", HEADING.champion, Side("2", "of before", TASKS, ("recency",)))
    for heading, at in ((before, 1.0), (HEADING, 2.0)):
        log = PairLog(tmp_path, heading)
        if heading is HEADING:
            log.append(line_of(at, 1), names(1))
        else:
            log.append(Line(at, 0.0, failed=1), [])
        log.close()
    files = sorted(tmp_path.glob("*.jsonl"), key=lambda path: b"of before" in path.read_bytes())
    newest = files[0].stat()

    os.utime(files[1], (newest.st_atime - 100, newest.st_mtime - 100))

    pairs = read_pairs(tmp_path, "m", "1", "2")

    assert (len(pairs), pairs.older, pairs.failed) == (1, 1, 0)


def test_nothing_kept_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"holds no pairs of m 1 and 2: .*RAPPORT_SHADOW_DIR"):
        read_pairs(tmp_path, "m", "1", "2")
    with pytest.raises(PairsError, match="holds no pairs"):
        read_pairs(tmp_path / "nowhere", "m", "1", "2")


def test_a_salt_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "salt").write_bytes(b"")

    with pytest.raises(OSError, match="is not a salt"):
        PairLog(tmp_path, HEADING).append(line_of(1.0, 1), names(1))
