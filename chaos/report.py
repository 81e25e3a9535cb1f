"""What a verdict looks like: a table for people, an object for files. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from chaos.checker import KINDS, Verdict

__all__ = ["summary", "table"]

_SHOWN: Final = 20


def _quantile(values: Sequence[int], share: float) -> int:
    """Of sorted values; 0 when there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0


def summary(verdict: Verdict) -> dict[str, Any]:
    """The figures of a verdict, as JSON has them."""
    return {
        "ok": verdict.ok,
        "published": verdict.published,
        "unsure": verdict.unsure,
        "sessions": verdict.sessions,
        "owed": verdict.total("owed"),
        "received": verdict.total("received"),
        "deliveries": verdict.received,
        "acked": verdict.acked,
        "announced": verdict.total("announced"),
        "marked": verdict.marked,
        "restored": verdict.restored,
        "untold": verdict.untold,
        "reread": verdict.reread,
        "gaps": dict(sorted(verdict.gaps.items())),
        "empty_gaps": verdict.empty_gaps,
        "dead_letters": verdict.dead_letters,
        "delay_ms": {
            "p50": _quantile(verdict.delays_ms, 0.5),
            "p99": _quantile(verdict.delays_ms, 0.99),
            "worst": _quantile(verdict.delays_ms, 1),
        },
        "publish_ms": {
            "p50": _quantile(verdict.publish_ms, 0.5),
            "p99": _quantile(verdict.publish_ms, 0.99),
            "worst": _quantile(verdict.publish_ms, 1),
        },
        "closes": {str(code): count for code, count in sorted(verdict.closes.items())},
        "faults": dict(sorted(Counter(fault.name for fault in verdict.faults).items())),
        "wrong": {kind: verdict.counts[kind] for kind in KINDS},
    }


def table(verdict: Verdict, begin_ms: int) -> str:
    """The table at the end of a run.

    Args:
        verdict: of the checker.
        begin_ms: when the history begins, for the times of the faults.
    """
    told = summary(verdict)
    delay, publish = told["delay_ms"], told["publish_ms"]
    rows: list[tuple[str, object]] = [
        ("published (returned)", told["published"]),
        ("publishes that raised, or whose publisher was killed", told["unsure"]),
        ("sessions", told["sessions"]),
        ("deliveries owed", told["owed"]),
        ("received", told["received"]),
        ("announced as a gap", told["announced"]),
        ("lost", told["wrong"]["lost"]),
        ("acks that were answered", told["acked"]),
        ("duplicates, marked", told["marked"]),
        ("duplicates, sent again by their publisher after a server had lost them", told["restored"]),
        ("  of these at sessions that were not told of a rollback", told["untold"]),
        ("duplicates, of what a server no longer knew to be read", told["reread"]),
        ("duplicates, unmarked", told["wrong"]["unmarked"] + told["wrong"]["stored_twice"]),
        ("gaps announced", ", ".join(f"{reason} {count}" for reason, count in told["gaps"].items()) or 0),
        ("  of these without anything missing", told["empty_gaps"]),
        ("dead letters", told["dead_letters"]),
        ("delay from publish to client, p50 / p99 / worst", f"{delay['p50']} / {delay['p99']} / {delay['worst']} ms"),
        ("time of a publish, p50 / p99 / worst", f"{publish['p50']} / {publish['p99']} / {publish['worst']} ms"),
        ("ends of connections by code", ", ".join(f"{code}: {count}" for code, count in told["closes"].items())),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += ["", "faults"]
    for fault in verdict.faults:
        lasted = "never healed" if fault.end_ms is None else f"{(fault.end_ms - fault.begin_ms) / 1000:.1f} s"
        lines.append(f"  {(fault.begin_ms - begin_ms) / 1000:7.1f} s  {fault.name:<18} {fault.target:<34} {lasted}")
    lines.append("")
    for kind, count in verdict.counts.items():
        lines.append(f"WRONG: {kind}: {count}")
        found = [finding for finding in verdict.findings if finding.kind == kind]
        lines += [f"  {finding}" for finding in found[:_SHOWN]]
    lines.append("nothing is wrong" if verdict.ok else f"{len(verdict.findings)} findings")
    return "\n".join(lines)
