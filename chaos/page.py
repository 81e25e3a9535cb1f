"""What runs found, kept as JSON, and the tables of docs/guarantees.md that are made of it. Pure.

`{"cells": [...], "mixes": [...]}`: a cell is one fault with one durability and one topology, a mix is a long run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from chaos.checker import Verdict, slices
from chaos.faults import FAULTS
from chaos.report import summary
from chaos.stores import TOPOLOGIES

__all__ = ["DURABILITIES", "cells_of", "filled", "impossible", "merged_cells", "mix_of"]

DURABILITIES: Final = ("memory", "replicated", "fsync")
_NO_WAIT: Final = "not possible: without a replica a publish raises `not_replicated`"
_TITLES: Final = {"single": "One server", "sentinel": "Sentinel", "cluster": "Cluster"}
_MIX: Final = (
    ("published", "published"),
    ("raised, or publisher killed", "unsure"),
    ("deliveries owed", "owed"),
    ("received", "received"),
    ("lost", "lost"),
    ("announced as a gap", "announced"),
    ("acks answered", "acked"),
    ("repeated, marked", "marked"),
    ("sent again by their publisher after a rollback", "restored"),
    ("repeated, where a failover took back the note that it was read", "reread"),
    ("repeated, unmarked", "unmarked"),
    ("out of order", "disordered"),
    ("dead letters", "dead_letters"),
)


def impossible(fault: str, durability: str, topology: str) -> str | None:
    """Why a cell can not be filled, in words; None when it can."""
    kind = FAULTS[fault]
    if topology not in kind.topologies:
        return kind.why_not
    return _NO_WAIT if durability == "replicated" and topology == "single" else None


def cells_of(verdict: Verdict, origin: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells that a run of every fault fills.

    Args:
        verdict: of the run.
        origin: topology, durability, seed, commit, date and server of the run.
    """
    concerned = slices(verdict)
    found = []
    for fault in verdict.faults:
        outcomes = concerned[fault.number]
        returned = [outcome for outcome in outcomes if outcome.entry is not None]
        found.append(
            {
                "fault": fault.name,
                **origin,
                "sent": len(returned),
                "unsure": len(outcomes) - len(returned),
                "owed": sum(outcome.owed for outcome in outcomes),
                "received": sum(outcome.received for outcome in outcomes),
                "lost": sum(outcome.lost for outcome in outcomes),
                "announced": sum(outcome.announced for outcome in outcomes),
                "worst_ms": max((outcome.worst_ms for outcome in outcomes), default=0),
                "wrong": len(verdict.findings),
            }
        )
    return found


def merged_cells(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells of both, where the new ones take the place of old ones, in the order of the tables."""
    by_place = {(cell["topology"], cell["fault"], cell["durability"]): dict(cell) for cell in [*old, *new]}
    order = [(t, f, d) for t in TOPOLOGIES for f in FAULTS for d in DURABILITIES]
    return [by_place[place] for place in order if place in by_place]


def mix_of(verdict: Verdict, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a long run."""
    told = summary(verdict)
    wrong = told["wrong"]
    unmarked = wrong["unmarked"] + wrong["stored_twice"]
    return {**origin, **told, "lost": wrong["lost"], "unmarked": unmarked, "disordered": wrong["disordered"]}


def filled(text: str, data: Mapping[str, Any]) -> str:
    """A page with its tables made anew, each between its two marks.

    Raises:
        ValueError: a mark is missing.
    """
    text = _between(text, "matrix", _matrix(data["cells"]))
    return _between(text, "mixes", _mixes(data["mixes"]))


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no marks for {name}")
    return f"{before}{begin}{content}{end}{after}"


def _matrix(cells: Sequence[Mapping[str, Any]]) -> str:
    by_place = {(cell["topology"], cell["fault"], cell["durability"]): cell for cell in cells}
    lines: list[str] = []
    for topology in TOPOLOGIES:
        lines += [f"#### {_TITLES[topology]}", ""]
        lines += [f"| fault | {' | '.join(f'`{one}`' for one in DURABILITIES)} |", "|---|---|---|---|"]
        for fault, kind in FAULTS.items():
            shown = []
            for durability in DURABILITIES:
                words = impossible(fault, durability, topology)
                shown.append(words or _cell(by_place.get((topology, fault, durability))))
            if len(set(shown)) > 1 or not impossible(fault, "memory", topology):
                lines.append(f"| {kind.what} (`{fault}`) | {' | '.join(shown)} |")
            else:
                lines.append(f"| {kind.what} (`{fault}`) | {shown[0]} | | |")
        lines.append("")
        lines += _origins([cell for cell in cells if cell["topology"] == topology])
    return "\n".join(lines)


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    unsure = f" ({cell['unsure']} raised or cut off)" if cell["unsure"] else ""
    return (
        f"sent {cell['sent']:,}{unsure}, received {cell['received']:,} of {cell['owed']:,}, lost {cell['lost']},"
        f" announced {cell['announced']}"
    )


def _origins(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the figures of a table come from."""
    runs = dict.fromkeys((c["durability"], c["server"], c["commit"], c["seed"], c["date"]) for c in cells)
    said = [f"`{d}`: {server}, commit {commit}, seed {seed}, {date}" for d, server, commit, seed, date in runs]
    return [f"{'; '.join(said)}.", ""] if said else []


def _mixes(mixes: Sequence[Mapping[str, Any]]) -> str:
    heads = [f"{_TITLES[mix['topology']]}, `{mix['durability']}`" for mix in mixes]
    rows: list[tuple[str, list[str]]] = [
        ("server", [mix["server"] for mix in mixes]),
        ("date, commit, seed", [f"{mix['date']}, {mix['commit']}, {mix['seed']}" for mix in mixes]),
        ("lasted", [f"{mix['minutes']:g} min" for mix in mixes]),
        ("faults", [str(sum(mix["faults"].values())) for mix in mixes]),
        ("sessions", [f"{mix['sessions']:,}" for mix in mixes]),
    ]
    rows += [(name, [f"{mix[key]:,}" for mix in mixes]) for name, key in _MIX]
    gaps = [", ".join(f"{reason} {count}" for reason, count in mix["gaps"].items()) or "none" for mix in mixes]
    rows.append(("gaps announced", gaps))
    for name, key in (("delay to the client", "delay_ms"), ("a publish", "publish_ms")):
        took = [f"{mix[key]['p50']:,} / {mix[key]['p99']:,} / {mix[key]['worst']:,} ms" for mix in mixes]
        rows.append((f"{name}, p50 / p99 / worst", took))
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(mixes) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows]
    return "\n".join(lines) + "\n"
