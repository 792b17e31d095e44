"""The report of a single run: what was trained, on which data, and how it learned."""

import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counterpoint.errors import UserError
from counterpoint.evaluate.report.figures import PALETTE, Curve, curve_panels
from counterpoint.evaluate.report.page import figure, learned_from, made, page, table
from counterpoint.files import write_text
from counterpoint.progress import spell_duration
from counterpoint.train.checkpoint import read_manifest, resolve
from counterpoint.train.ledger import Ledger, read_ledger
from counterpoint.train.metrics import read_metrics

_CAPTION = (
    "Training loss of every step (faint) and its running mean, against training FLOPs and against "
    "seconds."
)


def write_run_report(folder: Path) -> Path:
    """Make ``report.html`` from the files of a run folder.

    Returns:
        Path of the page.

    Raises:
        UserError: The folder has no checkpoint, or a package is missing.
    """
    manifest = read_manifest(resolve(folder))
    run = manifest.get("run")
    if run is None:
        raise UserError(
            f"{folder} must hold the run that trained it: it holds none. Train with `counterpoint "
            "train`, or give `run` to `train`."
        )
    rows = read_metrics(folder / "metrics.jsonl")
    path = folder / "report.html"
    ledger = ledger_table(read_ledger(manifest.get("ledger", [])))
    write_text(path, _page(run, manifest["counters"], rows, ledger))
    return path


def ledger_table(ledger: Ledger) -> str:
    """Return what was read of each source in each phase as a table; empty if nobody counted."""
    heads = ("phase", "source", "rows", "tokens", "share", "with loss", "items", "unique", "FLOPs")
    totals = Counter[str]()
    for entry in ledger:
        totals[entry.phase] += entry.tokens
    cells = [
        (
            entry.phase,
            entry.source,
            f"{entry.rows:,}",
            f"{entry.tokens:,}",
            f"{entry.tokens / totals[entry.phase]:.1%}",
            f"{entry.targets:,}",
            f"{entry.items:,}",
            "-" if entry.unique_items is None else f"{entry.unique_items:,}",
            f"{entry.flops:.3g}",
        )
        for entry in ledger
    ]
    return f"<h2>What was read</h2>{table(heads, cells)}" if cells else ""


def _page(
    run: Mapping[str, Any], counters: Mapping[str, Any], rows: list[dict[str, Any]], ledger: str
) -> str:
    system = run["system"]["type"].removesuffix("Config")
    train = run["train"]
    measured = [row for row in rows if "evaluation" in row]
    last = measured[-1]["evaluation"] if measured else {}
    bits = next((name for name in last if name.startswith("bits_per_")), None)
    unit = bits.removeprefix("bits_per_") if bits else "frame" if "row_s" in run["data"] else "byte"
    said = (
        f"{system} learned from {learned_from(run['data'])}: {counters['step']:,} of "
        f"{train['num_steps']:,} steps of {train['batch_rows']} rows, {counters['size']:,} "
        f"{unit}s, {counters['flops']:.3g} FLOPs in {spell_duration(counters['seconds'])}."
    )
    final = last.get(bits) if bits else None
    curve = Curve(
        name=run["name"],
        unit=unit,
        metrics=[row for row in rows if row.get("loss") is not None],
        colour=PALETTE[1],
        final=final,
    )
    cells = [
        (f"{row['step']:,}", *(f"{value:.4f}" for value in row["evaluation"].values()))
        for row in measured[-20:]
    ]
    found = "" if final is None else f"Held out: {final:.3f} bits a {unit}. One training seed."
    body = [
        f"<h1>{html.escape(run['name'])}</h1>",
        f'<p class="soft">{html.escape(said)}</p>',
        f'<p class="verdict">{html.escape(found or "What is held out was not measured.")}</p>',
        figure("Learning", _CAPTION, curve_panels([curve])) if curve.metrics else "",
        "<h2>Held out, after steps</h2>" + table(("step", *last), cells) if cells else "",
        ledger,
        made({"Full config": run}),
    ]
    return page(run["name"], body)
