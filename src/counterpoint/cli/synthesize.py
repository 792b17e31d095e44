"""The verb ``synthesize``: spoken dialogues from written dialogues."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from counterpoint.cli.running import Shown
from counterpoint.data.making.scripts import Script, is_sgd, read_scripts, read_sgd
from counterpoint.data.making.synthesis import SynthesisConfig, measure_set, synthesize
from counterpoint.data.making.turn_statistics import HUMAN, MEASURES, TurnStatistics
from counterpoint.data.making.turn_taking import Embellishment
from counterpoint.errors import UserError
from counterpoint.packages import check_modules
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse
from counterpoint.speech.voices import Synthesizer, find_voices

_HELP = """Synthesise spoken dialogues, with two voices on two channels, from written ones.

Example: counterpoint synthesize scripts.jsonl --out dialogues --limit 20 --workers 2
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesizeOptions:
    """Options of ``synthesize``.

    Attributes:
        scripts: A .jsonl file of scripts, or a file or folder of SGD dialogues.
        out: Folder for the recordings; existing recordings are not made again.
        limit: Number of dialogues to make, from the first on, or 0 for all.
        workers: Processes that speak at the same time; by default one, on Ray one for each core.
        ray: Use the Ray cluster at this address, such as auto; local starts one.
        agent: The agent's voices, such as "piper:joe:1.0" (engine, name, formant); by default all
            that are installed.
        user: The user's voices, named in the same way.
        cache: Folder that keeps every utterance; by default in the folder of the recordings.
    """

    scripts: tyro.conf.Positional[Path]
    out: Path
    limit: int = 0
    workers: int | None = None
    ray: str | None = None
    agent: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    cache: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How scripts become dialogues.

    Attributes:
        sample_rate: Sample rate of the recordings.
        seed: Seed of voices, paces and everything that a script leaves open.
        pace_spread: Largest relative change of each speaker's pace, in steps of 0.05.
        lead_s: Seconds of silence before the first turn.
        tail_s: Seconds of silence after the last turn.
    """

    sample_rate: int = 16_000
    seed: int = 0
    pace_spread: float = 0.1
    lead_s: float = 0.5
    tail_s: float = 1.5


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    fields = [
        ("options", SynthesizeOptions, REQUIRED),
        ("form", Form, Form()),
        ("embellishment", Embellishment, Embellishment()),
        ("shown", Shown, Shown()),
    ]
    chosen = parse(fields, arguments, "synthesize", _HELP)
    shown: Shown = chosen.shown
    with shown.results() as tell:
        tell(_synthesize(chosen.options, chosen.form, chosen.embellishment, shown))
    return 0


def _synthesize(
    options: SynthesizeOptions, form: Form, embellishment: Embellishment, shown: Shown
) -> dict[str, Any]:
    """Make the set, show its statistics, and return them as a JSON value."""
    scripts = _scripts(options)
    check_modules("soundfile", "soxr")  # needed when the first utterances are spoken
    config = SynthesisConfig(
        sample_rate=form.sample_rate,
        seed=form.seed,
        agent_voices=find_voices(options.agent),
        user_voices=find_voices(options.user),
        pace_spread=form.pace_spread,
        lead_s=form.lead_s,
        tail_s=form.tail_s,
        embellishment=embellishment,
    )
    with shown.progress() as progress:
        task = progress.task("speaking", "dialogues")
        listed = synthesize(
            scripts,
            options.out,
            config,
            workers=options.workers,
            ray=options.ray,
            speaker=None if options.cache is None else Synthesizer(options.cache),
            on_progress=lambda done, of, seconds: task(
                done, of, f"{seconds / 60:.0f} min of speech"
            ),
        )
    found = measure_set(listed)
    Console(file=sys.stdout, markup=False, emoji=False).print(_table(found))
    print(listed)
    return {"list": listed, **asdict(found)}


def _scripts(options: SynthesizeOptions) -> list[Script]:
    if options.limit < 0:
        raise UserError(f"`--limit` must be >= 0: got {options.limit}.")
    sgd = options.scripts.is_dir() or is_sgd(options.scripts)
    scripts = read_sgd(options.scripts) if sgd else read_scripts(options.scripts)
    return scripts[: options.limit or None]


def _table(found: TurnStatistics) -> Table:
    """Return the measured statistics next to those of people."""
    title = f"{found.dialogues} dialogues, {found.hours:.2f} hours"
    table = Table("measure", "here", "people", title=title)
    for measure in MEASURES:
        here = measure.form.format(getattr(found, measure.name))
        table.add_row(measure.title, here, measure.form.format(HUMAN[measure.name]))
    table.add_row("interruptions", str(found.interruptions), "")
    return table
