"""A study's page: what the document says, what was found here, and the command that found it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labkit.studies.study import Study, StudyResult, Table

__all__ = ["page"]

_WORDS = {"yes": "agrees", "no": "does not agree", "partly": "agrees in part"}


def page(study: Study, result: StudyResult, made: Mapping[str, Any]) -> str:
    """The page in Markdown.

    Parameters
    ----------
    study, result
        What was studied and found.
    made
        ``command``, ``seconds``, ``versions`` and ``settings``, as `labkit.studies.run.run_study` keeps them.
    """
    says = "To reach" if study.source.startswith("labkit") else "The document"
    parts = [f"# {study.title}", f"Source: {study.source}.", f"**{says}.** {study.says}"]
    if made["settings"]["smoke"]:
        parts.append("**A smoke run: everything was cut short, and the figures below mean nothing.**")
    parts += ["## Findings", _findings(result)]
    parts += [_table(table) for table in result.tables]
    parts += [f"![{figure.title}]({figure.name}.svg)" for figure in result.figures]
    if result.notes:
        parts.append("## Notes")
        parts.append("\n".join(f"- {note}" for note in result.notes))
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    parts += [
        "## How this was made",
        f"`{made['command']}`, {_minutes(made['seconds'])}. {versions}. The figures above are in [result.json](result.json).",
    ]
    return "\n\n".join(parts) + "\n"


def _findings(result: StudyResult) -> str:
    lines = ["| claim | measured here | |", "|---|---|---|"]
    lines += [f"| {_cell(f.claim)} | {_cell(f.measured)} | {_WORDS[f.agrees]} |" for f in result.findings]
    return "\n".join(lines)


def _table(table: Table) -> str:
    lines = [f"**{table.title}**", "", "| " + " | ".join(_cell(c) for c in table.columns) + " |"]
    lines.append("|" + "---|" * len(table.columns))
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value).replace("|", "\\|")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
