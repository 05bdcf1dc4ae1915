"""DESIGN.md's table of who imports what, held by reading the imports of every module, those inside functions too."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("feature_client", "model_export", "service", "loadtests", "tests")

HEAVY = ("feature_client.offline", "feature_client.feature_repo", "feature_client.online.feast_sdk")
"""The parts of feature_client that may import Feast and its kin."""

LAZY = "service.extras"
"""Reaches the extras by name, when a sub-command needs them; nothing else imports by name."""


@dataclass(frozen=True)
class Rule:
    """What the modules of `package` (less `except_for`) may import of ours, and what they must never reach.

    Never, that is neither themselves nor through other modules of ours.
    """

    package: str
    ours: tuple[str, ...]
    never: tuple[str, ...]
    except_for: tuple[str, ...] = ()


TABLE = (
    Rule("feature_client", ("feature_client",), ()),
    Rule("feature_client", ("feature_client",), ("feast", "torch", "pandas", "fastapi"), HEAVY),
    Rule("model_export", ("model_export", "feature_client"), ("fastapi", "service")),
    Rule("service", ("service", "feature_client"), ("torch", "feast", "pandas", "ibis", "model_export")),
    Rule("loadtests", ("loadtests",), ()),
)

Imports = Mapping[str, set[str]]
"""Module of ours -> what it imports: modules, and names in modules, dotted."""


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(root: Path) -> Imports:
    found = {}
    for package in OURS[:-1]:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[module] = set(names_in(path, module))
    return found


def names_in(path: Path, module: str) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield "(by name)"


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def violations(imports: Imports) -> list[str]:
    found = []
    for rule in TABLE:
        foreign = tuple(package for package in OURS if package not in rule.ours)
        for module in imports:
            if not inside(module, (rule.package,)) or inside(module, rule.except_for):
                continue
            found += [f"{module} imports {name}" for name in sorted(imports[module]) if inside(name, foreign)]
            if "(by name)" in imports[module] and module != LAZY:
                found.append(f"{module} imports by name")
            found += [
                f"{module} reaches {name}" for name in sorted(reached(module, imports)) if inside(name, rule.never)
            ]
    return found


def reached(module: str, imports: Imports) -> set[str]:
    """Everything that importing `module` and calling its functions may import."""
    seen, todo = set[str](), with_parents(module)
    while todo:
        for imported in imports.get(todo.pop(), ()):
            new = [name for name in with_parents(imported) if name not in seen]
            seen.update(new)
            todo += new
    return seen


def with_parents(name: str) -> list[str]:
    """Importing a.b.c runs a and a.b first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def test_packages_import_only_what_the_table_allows() -> None:
    imports = imports_of(ROOT)

    assert len(imports) > 30
    assert violations(imports) == []


@pytest.mark.parametrize(
    ("planted", "source", "caught"),
    [
        ("service/a.py", "import torch", "service.a reaches torch"),
        ("service/a.py", "def f():\n    from feast.protos import x", "service.a reaches feast.protos"),
        ("service/a.py", "if True:\n    import pandas.core as p", "service.a reaches pandas.core"),
        ("service/backends/a.py", "from model_export import verify", "service.backends.a imports model_export"),
        ("service/a.py", "import importlib\nimportlib.import_module('tor' + 'ch')", "service.a imports by name"),
        ("service/a.py", "from feature_client.offline import registry", "service.a reaches feast"),
        ("service/a.py", "from feature_client.online.feast_sdk import FeastReader", "service.a reaches feast"),
        ("service/a.py", "from tests import conftest", "service.a imports tests"),
        ("feature_client/a.py", "import torch", "feature_client.a reaches torch"),
        ("feature_client/online/a.py", "from ..offline import registry", "feature_client.online.a reaches feast"),
        ("feature_client/online/__init__.py", "import feast", "feature_client.online reaches feast"),
        ("feature_client/a.py", "from feature_client.online import feast_sdk", "feature_client.a reaches feast"),
        ("feature_client/offline/a.py", "import feast, pandas", None),
        ("feature_client/offline/a.py", "import model_export", "feature_client.offline.a imports model_export"),
        ("model_export/a.py", "import fastapi", "model_export.a reaches fastapi"),
        ("model_export/a.py", "from service.protocol import Problem", "model_export.a imports service.protocol"),
        ("model_export/a.py", "import torch, feast, pandas", None),
        ("loadtests/a.py", "from feature_client import schema", "loadtests.a imports feature_client"),
        ("loadtests/a.py", "from loadtests import answers", None),
    ],
)
def test_the_checker_sees_what_it_should(tmp_path: Path, planted: str, source: str, caught: str | None) -> None:
    """Controls: a tree with one module that breaks the table, or that only seems to."""
    files = {
        "feature_client/offline/registry.py": "import feast",
        "feature_client/online/feast_sdk.py": "def f():\n    import feast",
        planted: source,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    found = violations(imports_of(tmp_path))

    assert found == [] if caught is None else caught in found


def test_the_gateway_process_holds_nothing_heavy() -> None:
    """What no parser sees: what the libraries that we do import bring along."""
    code = "import sys, service.app, service.server; print(*sorted(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    loaded = set(process.stdout.split())
    assert "service.app" in loaded
    assert not loaded & {"torch", "feast", "pandas", "ibis", "model_export", "onnx", "pyarrow"}
