"""`rapport features verify`: live keys of an online store, read by Feast and by our two readers, value for value.

Written for a store that is in use: a bounded SCAN, small batches, and what seems to differ is read again before it
counts, because a write may have come between two readers.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import feast
from feast import FeatureStore
from redis.exceptions import RedisError

from feature_client.errors import RapportError
from feature_client.offline.comparison import Difference, differences
from feature_client.offline.compat_registry import compile_compat
from feature_client.offline.feast_answer import Answer, ask, declared_members
from feature_client.offline.live_entities import Row, live_rows
from feature_client.offline.registry import SERVICE, compile_schema
from feature_client.offline.store import open_store
from feature_client.offline.strict_check import StrictCheck
from feature_client.offline.workspace import Workspace
from feature_client.online.compat import CompatReader
from feature_client.online.compat_plan import CompatPlan
from feature_client.online.connection import connect, parse
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.online.wire import WireError
from feature_client.schema import SchemaError

SAMPLE = 1_000
BATCH = 50
"""Rows of one read: Feast's own client then holds Redis for a few milliseconds."""
ATTEMPTS = 3
"""Reads of a row before a difference counts."""
TIMEOUT_S = 10.0


class VerifyError(RapportError):
    """What cannot be verified, or was and differs."""


@dataclass
class Report:
    """statuses: of the values as Feast answers them. strict: why the strict reader was not compared, else empty."""

    project: str
    service: str
    entities: int = 0
    values: int = 0
    strict_values: int = 0
    strict_refused: int = 0
    strict: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    other_types: Counter[str] = field(default_factory=Counter)
    compat_differences: list[Difference] = field(default_factory=list)
    strict_differences: list[Difference] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def differ(self, reader: str, found: Sequence[Difference]) -> None:
        (self.compat_differences if reader == "compat" else self.strict_differences).extend(found)

    @property
    def different(self) -> list[str]:
        """Names of the features that differ, as view__feature."""
        return sorted({found.feature for found in (*self.compat_differences, *self.strict_differences)})

    def lines(self) -> Iterator[str]:
        yield f"{self.project}/{self.service}, Feast {feast.__version__}: {self.entities:,} live entities"
        yield f"compat reader: {_verdict(self.compat_differences, self.values)}"
        yield f"strict reader: {self.strict or _verdict(self.strict_differences, self.strict_values)}"
        yield f"values: {', '.join(f'{count:,} {status}' for status, count in self.statuses.most_common())}"
        for name, count in self.other_types.most_common():
            yield f"  {name}: {count:,} of another type than declared; Feast shows them, strict takes none for a value"
        if self.strict_refused:
            yield f"  {self.strict_refused:,} entities have ids that strict refuses and Feast reads"
        for warning in self.warnings:
            yield f"warning: {warning}"


def verify_workspace(workspace: Workspace, sample: int = SAMPLE, *, allow_unverified: bool = False) -> Report:
    """The features of this workspace's own declaration. Raises VerifyError, CompatError, ConnectionStringError."""
    return verify(open_store(workspace), SERVICE, sample, allow_unverified=allow_unverified)


def verify_project(repo: Path, service: str, sample: int = SAMPLE, *, allow_unverified: bool = False) -> Report:
    """The same for a Feast project of the user's own."""
    if not (repo / "feature_store.yaml").is_file():
        raise VerifyError(f"{repo} has no feature_store.yaml: it is not a Feast project")
    return verify(FeatureStore(repo_path=str(repo)), service, sample, allow_unverified=allow_unverified)


def verify(store: FeatureStore, service: str, sample: int = SAMPLE, *, allow_unverified: bool = False) -> Report:
    """sample: entities to read. What differs is in the report. Raises VerifyError where there is nothing to compare."""
    plan = compile_compat(store, service, full_feature_names=True, allow_unverified=allow_unverified)
    online = store.config.online_store
    if online.type != "redis" or str(getattr(online, "redis_type", "redis")).rpartition(".")[2] != "redis":
        raise VerifyError("the online store is not one Redis server: only that is read directly")
    return asyncio.run(_Verification(store, plan, online.connection_string).run(sample))


class _Verification:
    def __init__(self, store: FeatureStore, plan: CompatPlan, connection_string: str) -> None:
        self.store = store
        self.plan = plan
        self.redis = connect(parse(connection_string), TIMEOUT_S)
        self.compat = CompatReader(plan, self.redis)
        self.report = Report(plan.project, plan.service)
        self.service = store.get_feature_service(plan.service)
        self.strict: StrictCheck | None = None
        try:
            self.strict = StrictCheck(compile_schema(store, plan.service), connection_string, TIMEOUT_S)
        except SchemaError as exc:
            self.report.strict = f"not compared, for the service is no model's input: {exc}"
        self.members = declared_members(self.service)

    async def run(self, sample: int) -> Report:
        try:
            live = await live_rows(self.redis, self.plan, sample)
            if not live.rows:
                raise VerifyError(f"nothing to compare: the store holds no entity of {self.plan.project}'s views")
            self.report.entities, self.report.warnings = live.entities, live.warnings
            for start in range(0, len(live.rows), BATCH):
                await self._compare(live.rows[start : start + BATCH])
        except RedisError as exc:
            raise VerifyError(f"the online store does not answer: {type(exc).__name__}") from exc
        except FeatureStoreUnavailable as exc:
            raise VerifyError(f"the online store does not answer: {exc}") from exc
        finally:
            await self.redis.aclose()
            if self.strict:
                await self.strict.close()
        if not self.report.statuses["present"]:
            self.report.warnings.append("not one value was there: that null is null proves little")
        return self.report

    async def _compare(self, rows: Sequence[Row]) -> None:
        """Adds the rows to the report; what differs is read again first."""
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            theirs, ours = ask(self.store, self.service, rows), await self._ours(rows)
            if theirs is None or isinstance(ours, WireError):
                if len(rows) > 1:  # one value that cannot be read fails its batch
                    for row in rows:
                        await self._compare([row])
                    return
                if theirs is None and isinstance(ours, WireError):
                    self.report.statuses["rows that cannot be read"] += 1
                    return
                if last:
                    self.report.differ("compat", [_unreadable(ours)])
                continue
            compat = differences(theirs.columns, ours)
            keys = self.strict.keys(rows) if self.strict else {}
            strict = await self.strict.differences(theirs, keys) if self.strict else []
            if last or not (compat or strict):
                self.report.differ("compat", compat)
                self.report.differ("strict", strict)
                self._count(theirs, len(rows), len(keys))
                return

    async def _ours(self, rows: Sequence[Row]) -> dict[str, list[Any]] | WireError:
        try:
            return await self.compat.get_online_features(rows, include_event_timestamps=True)
        except WireError as exc:
            return exc

    def _count(self, answer: Answer, rows: int, strict_rows: int) -> None:
        self.report.values += rows * len(self.members)
        if self.strict:
            self.report.strict_values += strict_rows * len(self.members)
            self.report.strict_refused += rows - strict_rows
        for name, declared in self.members.items():
            for row, member in enumerate(answer.members[name]):
                status = "present"
                if member is None:
                    status = "null" if answer.times[name][row] else "missing"
                elif member != declared:
                    status = "of another type"
                    self.report.other_types[name] += 1
                self.report.statuses[status] += 1


def _unreadable(ours: dict[str, list[Any]] | WireError) -> Difference:
    """Of a row that only one of the two can read."""
    if isinstance(ours, WireError):  # it starts with view:field
        return Difference(str(ours).split(": ")[0].replace(":", "__"), 0, "an answer", "cannot be read")
    return Difference("(a whole row)", 0, "cannot be read", "an answer")


def _verdict(found: Sequence[Difference], values: int) -> str:
    if not found:
        return f"equal, {values:,} values"
    counts = Counter(difference.feature for difference in found)
    worst = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
    return f"{len(found):,} of {values:,} values differ: {worst}; first {found[0]}"
