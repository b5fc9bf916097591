"""A certificate as one HTML page that needs nothing beside itself: what was compared, by which rules, and where they part."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from labkit.parity.certificate import Certificate, NodeVerdict
from labkit.parity.report import ParityReport
from labkit.reporting.summary import short_count

__all__ = ["certificate_page"]


def certificate_page(name: str, report: ParityReport) -> str:
    """The certificate ``report`` of the net called ``name`` as text of one HTML file.

    Strings are escaped, whatever they hold. A content security policy in the page forbids every request, so that opening it
    can never contact anybody.
    """
    environment = Environment(
        loader=PackageLoader("labkit.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = "{:,}".format
    certificate = report if isinstance(report, Certificate) else None
    return environment.get_template("certificate.html.j2").render(
        name=name,
        report=report,
        certificate=certificate,
        status="passed" if report.passed else "failed",
        cards=_cards(report),
        nodes=[_row(node) for node in certificate.nodes] if certificate else [],
        facts=_facts(report),
    )


def _cards(report: ParityReport) -> list[dict[str, str]]:
    cards = [
        _card("Elements compared", short_count(report.elements), f"{len(report.comparisons):,} comparisons"),
        _card("Elements that differ", f"{report.differing:,}", _share(report)),
        _card("Images", f"{report.images:,}", ""),
    ]
    if isinstance(report, Certificate):
        cards[2] = _card("Images", f"{report.images:,}", report.inputs)
        own = sum(node.own[1] > 0 for node in report.nodes)
        cards.append(_card("Nodes that differ by themselves", f"{own:,}", f"of {len(report.nodes):,}"))
    return cards


def _card(label: str, value: str, detail: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail}


def _share(report: ParityReport) -> str:
    if not report.differing:
        return "tolerance 0"
    return f"{100 * report.differing / report.elements:.2g} % of them"


def _row(node: NodeVerdict) -> dict[str, Any]:
    return {"node": node, "status": "culprit" if node.own[1] else "follows" if node.through[1] else ""}


def _facts(report: ParityReport) -> dict[str, str]:
    facts = {"Net": report.subject, "Compared with": report.against}
    if isinstance(report, Certificate):
        facts |= {"Rules followed": report.like}
        facts |= {name.capitalize(): value for name, value in report.processor.items()}
    return {**facts, **report.versions}
