"""What a release says of its gates: model_export/gates.py writes it, and whoever sends customers to a release reads it.

It stands in the contract's `training`, and so in the model card. Every graph and the manifest hold the contract's
digest: what is said is said of these very files. Light, for `serve` forks from what the commands import.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from feature_client.errors import RapportError

if TYPE_CHECKING:  # brings numpy along
    from feature_client.contract import Contract

PREFIX = "gates_"
PASSED, NOT_JUDGED, FAILED = "gates_passed", "gates_not_judged", "gates_failed"
ACCEPTED = "gates_accepted_because"
CHAMPION, CHAMPION_CONTRACT = "gates_champion", "gates_champion_contract"
"""Whom the model was compared with: a name, which holds in one repository, and a digest, which holds in all."""

REASON_LENGTH = 500

TOLERATED: Mapping[str, float] = {"auc": 0.01, "rmse_capped": 0.02, "spearman": 0.02}
"""What two models are compared by, and how much worse than the champion is no matter (of an error, the share)."""

ERRORS = ("rmse_capped",)
"""Of them, those of which less is better."""


class GateError(RapportError):
    """A model that must not be published or answer; the message names it, and what speaks against it."""


def objection(training: Mapping[str, str]) -> str | None:
    """What speaks against a model of which this is the `training`; None where nothing does, or where its card says why
    it was published all the same."""
    if training.get(ACCEPTED):
        return None
    if FAILED in training:
        return f"it does not pass its gates: {training[FAILED]}"
    return None if PASSED in training else "its gates were not asked when it was made"


def reason(accept: str) -> str:
    """The words of `--accept`, in one line. Raises GateError where there are none, or too many."""
    words = " ".join(accept.split())
    if not 0 < len(words) <= REASON_LENGTH:
        raise GateError(f"--accept takes a reason that others can read later, of {REASON_LENGTH} characters at most")
    return words


def other_rival(contract: "Contract", champion: "Contract", name: str) -> str | None:
    """What to know of a model before it replaces `champion`, called `name`; None where its gates met that very one.

    The test rows stay with whoever trained it, so nothing here can tell a fault from chance: it is said, and no more.
    """
    if champion.digest in (contract.training.get(CHAMPION_CONTRACT), contract.digest):
        return None
    rival = contract.training.get(CHAMPION, "no champion")
    said = f"its gates compared it with {rival}, and not with the champion of now, {name}"
    if contract.digests.get("data") != champion.digests.get("data"):
        return f"{said}; their figures are of other data, and cannot be compared"
    if worse := list(_worse(contract, champion)):
        return f"{said}; of the same data its contract states worse, perhaps by chance: {'; '.join(worse)}"
    return f"{said}; of the same data its contract states nothing worse than is tolerated"


def _worse(contract: "Contract", champion: "Contract") -> Iterator[str]:
    there = {task.name: task for task in champion.tasks}
    for task in contract.tasks:
        other = there.get(task.name)
        if other is None or (other.kind, other.unit, other.horizon_days) != (task.kind, task.unit, task.horizon_days):
            continue
        stated, others = (of.metrics.get(task.name, {}) for of in (contract, champion))
        for metric, tolerated in TOLERATED.items():
            if metric not in stated or metric not in others:
                continue
            new, old = stated[metric], others[metric]
            bound = old * (1 + tolerated) if metric in ERRORS else old - tolerated
            # Also of NaN.
            if not (new <= bound if metric in ERRORS else new >= bound):
                allowed = f"{100 * tolerated:g} %" if metric in ERRORS else f"{tolerated:g}"
                yield f"{task.name} {metric} {new:.4g} against {old:.4g}, where {allowed} worse is tolerated"
