"""Whom a command may send customers to: what its gates let pass, what answered before, or what somebody answers for."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from feature_client.clock import to_iso
from feature_client.release import Release, ReleaseError, read_release
from feature_client.routes import Accepted, Route
from feature_client.verdicts import ACCEPTED, FAILED, GateError, objection, other_rival, reason


def let_answer(release: Release, before: Route | None, after: Route, accept: str | None) -> Route:
    """The route `after`, which makes `release` answer customers, and says why where it does so against its gates.

    before: the route of now, whose champion and the champion before it need no reason: a way back is always free.
    accept: the reason, once and for all of this release. Raises GateError.
    """
    version = release.manifest.version
    if before is not None and version in (before.champion, before.previous):
        return after
    against = objection(release.contract.training)
    if against is None or version in {accepted.version for accepted in after.accepted}:
        return after
    if accept is None:
        raise GateError(
            f'{release.name} gets no customers: {against}. --accept "why" lets it answer all the same, and routes.toml '
            "says why"
        )
    accepted = Accepted(version, reason(accept), to_iso(time.time()))
    return msgspec.structs.replace(after, accepted=(*after.accepted, accepted))


def warnings(root: Path, release: Release, before: Route | None) -> Iterator[str]:
    """What to know before `release` becomes champion: that it failed, or was compared with another one."""
    version, training = release.manifest.version, release.contract.training
    if FAILED in training and ACCEPTED in training:
        yield f"{release.name}: {training[FAILED]}; accepted because: {training[ACCEPTED]}"
    if before is None or version in (before.champion, before.previous):
        return
    try:
        champion = read_release(root, release.manifest.model, before.champion)
    except ReleaseError as exc:
        yield f"{release.name}: it cannot be compared with the champion of now: {exc}"
        return
    if said := other_rival(release.contract, champion.contract, champion.name):
        yield f"{release.name}: {said}"
