"""What operators, publishers and accidents do to a model repository."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from feature_client.contract import Contract
from feature_client.release import Manifest, graph_file, release_directories, sha256
from feature_client.routes import Route

MODEL = "engagement"


def write_routes(root: Path, route: Route) -> None:
    """By hand, as an operator with an editor that replaces files."""
    lines = [f"[{MODEL}]", f"champion = {route.champion}"]
    if route.previous is not None:
        lines.append(f"previous = {route.previous}")
    if route.canary is not None:
        lines.append(f"canary = {{ version = {route.canary.version}, percent = {route.canary.percent} }}")
    if route.shadow:
        lines.append(f"shadow = {list(route.shadow)}")
    if route.standby:
        lines.append(f"standby = {list(route.standby)}")
    if route.salt:
        lines.append(f'salt = "{route.salt}"')
    replace_routes(root, "\n".join(lines) + "\n")


def replace_routes(root: Path, text: str) -> None:
    staged = root / ".routes-by-hand"
    staged.write_text(text)
    staged.replace(root / "routes.toml")


def next_version(root: Path) -> int:
    """One that no directory has, not even a broken one."""
    names = (re.fullmatch(rf"{MODEL}\.(\d+)(\.explain\w*)?", path.name) for path in root.iterdir())
    return 1 + max(int(match[1]) for match in names if match)


Change = Callable[[Path, Path], None]
"""Gets the directories of the score graph and of the default explainer."""


def forge(root: Path, source: int, change: Change | None = None) -> int:
    """A copy of `source` under the next version, with `change` made before its manifest is: the sums agree."""
    version = next_version(root)
    before, after = f"{MODEL}.{source}", f"{MODEL}.{version}"
    old = msgspec.json.decode((root / before / "manifest.json").read_bytes(), type=Manifest)
    suffixes = [directory.removeprefix(before) for directory in release_directories(before, old.explainers)]
    for suffix in reversed(suffixes):
        shutil.copytree(
            root / (before + suffix), root / (after + suffix), ignore=shutil.ignore_patterns("manifest.json")
        )
        config = root / (after + suffix) / "config.pbtxt"
        config.write_text(config.read_text().replace(f'"{before}{suffix}"', f'"{after}{suffix}"'))
    directories = [root / f"{after}{suffix}" for suffix in suffixes]
    if change is not None:
        change(*directories[:2])
    contract = Contract.from_json((root / after / "contract.json").read_bytes())
    files = sorted(path for directory in directories for path in directory.rglob("*") if path.is_file())
    digests = {path.relative_to(root).as_posix(): sha256(path) for path in files}
    manifest = Manifest(MODEL, version, contract.digest, old.created_at, old.explainers, digests)
    staged = root / ".manifest-by-hand"
    staged.write_bytes(msgspec.json.encode(manifest))
    staged.replace(root / after / "manifest.json")
    return version


def truncated(score: Path, explain: Path) -> None:
    for directory in (score, explain):
        size = graph_file(directory).stat().st_size
        os.truncate(graph_file(directory), size // 2)


def zero_byte(score: Path, explain: Path) -> None:
    os.truncate(graph_file(explain), 0)


def flipped_byte(score: Path, explain: Path) -> None:
    path = graph_file(score)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def nan_weights(score: Path, explain: Path) -> None:
    for directory in (score, explain):
        model = onnx.load(graph_file(directory))
        largest = max(
            (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT),
            key=lambda tensor: int(np.prod(tensor.dims)),
        )
        largest.CopyFrom(numpy_helper.from_array(np.full(tuple(largest.dims), np.nan, np.float32), largest.name))
        onnx.save(model, graph_file(directory))


def no_exact_explainer(score: Path, explain: Path) -> None:
    """Which nobody here asks for, but a release is whole or it is none."""
    graph_file(score.with_name(f"{score.name}.explain_exact")).unlink()


def contract_of(other: int) -> Change:
    """The contract of another release, whole in itself."""

    def change(score: Path, explain: Path) -> None:
        shutil.copyfile(score.parent / f"{MODEL}.{other}" / "contract.json", score / "contract.json")

    return change


DAMAGE: dict[str, tuple[Change | None, Change | None]] = {
    "truncated": (None, truncated),
    "zero-byte": (None, zero_byte),
    "flipped byte": (None, flipped_byte),
    "an explainer less": (None, no_exact_explainer),
    "truncated, sums made anew": (truncated, None),
    "NaN weights, sums made anew": (nan_weights, None),
    "wrong contract, sums made anew": (contract_of(1), None),
}
"""What is done to a release before its manifest is written, and after."""


def damaged(root: Path, source: int, damage: str) -> int:
    """The next version: `source`, damaged. Not 1, whose contract is the wrong one."""
    before, after = DAMAGE[damage]
    version = forge(root, source, before)
    if after is not None:
        after(root / f"{MODEL}.{version}", root / f"{MODEL}.{version}.explain")
    return version


UNREADABLE = {
    "cut off": "[engagement",
    "no model": "champion = 1\n",
    "no version": "[engagement]\nchampion = -1\n",
    "empty": "",
}
"""Texts of routes.toml."""
