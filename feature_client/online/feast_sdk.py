"""Features through Feast's own SDK: slower than redis_reader.py by an order of magnitude, but for any online store."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_client.online.decoding import Reply, decode, empty_batch
from feature_client.online.plan import EntityKey, ReadPlan
from feature_client.online.reader import FeatureStoreUnavailable
from feature_client.schema import FeatureBatch

if TYPE_CHECKING:
    from feast import FeatureStore

MAX_THREADS = 8
"""Reads at once. A stalled store holds threads until its own timeouts end them; this bounds how many."""

Answer = TypeVar("Answer")


class FeastReader:
    """Keeps the FeatureReader protocol (reader.py) on a Feast feature store, whatever its online store is.

    Feast is blocking: reads run in threads of the reader's own. At `timeout_s` the caller goes on; the thread ends
    when the store's client gives up, so set that client's timeouts in feature_store.yaml.
    """

    def __init__(self, store: "FeatureStore") -> None:
        self.store = store
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="feast")

    @classmethod
    def from_repo(cls, repo: Path) -> "FeastReader":
        """repo: a folder with feature_store.yaml. Importing Feast takes seconds and some 300 MB."""
        from feast import FeatureStore  # noqa: PLC0415  (only who uses this reader pays for it)

        return cls(FeatureStore(repo_path=str(repo)))

    async def fetch(self, plan: ReadPlan, keys: Sequence[EntityKey], timeout_s: float) -> FeatureBatch:
        """See FeatureReader."""
        distinct = list(dict.fromkeys(keys))
        if not distinct:
            return empty_batch(plan, 0)
        replies = await self._in_thread(lambda: self._read(plan, distinct), timeout_s)
        of = {key: row for row, key in enumerate(distinct)}
        return decode(plan, keys, [[rows[of[key]] for key in keys] for rows in replies])

    async def ping(self, timeout_s: float) -> None:
        """See FeatureReader. Reads one feature of an entity that need not exist."""
        await self._in_thread(self._read_anything, timeout_s)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, read: Callable[[], Answer], timeout_s: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except TimeoutError as exc:
            raise FeatureStoreUnavailable("Feast's online store did not answer in time") from exc
        # Every online store has errors of its own, and their messages may quote keys.
        except Exception as exc:
            raise FeatureStoreUnavailable(f"Feast's online store failed: {type(exc).__name__}") from exc

    def _read(self, plan: ReadPlan, keys: Sequence[EntityKey]) -> list[list[Reply]]:
        """For each hash of the plan, one reply a key."""
        names = [key.name for key in plan.join_keys]
        response = self.store.get_online_features(
            features=[f"{view}:{field}" for hash_ in plan.hashes for view, field in hash_.names],
            entity_rows=[dict(zip(names, key.values, strict=True)) for key in keys],
            full_feature_names=True,
        ).proto
        vectors = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
        replies: list[list[Reply]] = []
        for hash_ in plan.hashes:
            columns = [vectors[f"{view}__{field}"] for view, field in hash_.names]
            # All features of a view have its row's time: any of them will do.
            times = {view: column.event_timestamps for (view, _), column in zip(hash_.names, columns, strict=True)}
            replies.append(
                [
                    [
                        *(column.values[row].SerializeToString() for column in columns),
                        *(_time(times[view.name][row]) for view in hash_.views),
                    ]
                    for row in range(len(keys))
                ]
            )
        return replies

    def _read_anything(self) -> None:
        view = self.store.list_feature_views()[0]
        self.store.get_online_features(
            features=[f"{view.name}:{view.features[0].name}"], entity_rows=[dict.fromkeys(view.join_keys, "0")]
        )


def _time(timestamp: Any) -> bytes | None:
    """Serialized; None where Feast says 1970, which is how it says that there is no row."""
    return timestamp.SerializeToString() or None
