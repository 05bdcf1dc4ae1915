"""A page of findings that is whole in itself: its pictures are in it, and it asks nothing of a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from feature_client.errors import RapportError

LIBRARIES = ("rapport", "onnxruntime", "numpy", "matplotlib")
"""Whose versions a page states."""


class ReportError(RapportError):
    """A report that cannot be made; the message says what is missing."""


@dataclass(frozen=True)
class Picture:
    """A picture with the words that stand for it (alt) and the words that explain it."""

    name: str
    title: str
    alt: str
    caption: str
    png: bytes

    @property
    def data(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Report:
    """rows: what it is made of."""

    html: str
    figures: Sequence[Picture]
    rows: int


def render(template: str, **values: Any) -> str:
    """One of the templates beside this module. Whatever is not Markup is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["strong"] = _strong
    return environment.get_template(template).render(**values)


def _strong(text: str) -> Markup:
    """Escaped, but for what stands between ** and **."""
    parts = str(escape(text)).split("**")
    if len(parts) % 2 == 0:  # one mark alone is part of somebody's words
        return Markup(escape(text))  # noqa: S704
    return Markup("".join(f"<strong>{part}</strong>" if place % 2 else part for place, part in enumerate(parts)))  # noqa: S704


def versions() -> str:
    return ", ".join(f"{library} {installed(library)}" for library in LIBRARIES)


def write_report(report: Report, out: Path, pngs: Path | None) -> None:
    """pngs: a directory for the pictures on their own, or none. Raises ReportError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report.html, encoding="utf-8")
        if pngs is not None:
            pngs.mkdir(parents=True, exist_ok=True)
            for figure in report.figures:
                (pngs / f"{figure.name}.png").write_bytes(figure.png)
    except OSError as exc:
        raise ReportError(f"cannot write {exc.filename or out}: {exc.strerror or exc}") from exc
