"""Does a test fail for every error of one in time? Plant each in a copy of the tree and run tests.

Every entry of `mutations.toml` changes one place of the source by one tick, step, block or element.
It is caught when a test of its area fails, and it survives when all pass. Outcomes are kept in the
file ``--out``, from which ``--page docs/mutations.md`` is made; ``--missing`` tries only entries of
the table that have no outcome there.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from record import keep, this_commit

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path("src/counterpoint")
TABLE = ROOT / "benchmarks/mutations.toml"
COPIED = ("src", "tests", "benchmarks", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml")
MOST_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """An error to plant.

    Attributes:
        kind: What is off by one.
        file: Where, within ``src/counterpoint``.
        before: Text of the source, which must stand there exactly once.
        after: What stands in its place.
        tests: Arguments of pytest: the tests of the area.
    """

    kind: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a planted error: ``caught``, ``survived`` or ``broken``, and by which test."""

    kind: str
    file: str
    before: str
    after: str
    outcome: str
    by: str
    seconds: float
    commit: str


def read_table() -> list[Mutation]:
    """All entries of the table, each of which fits the source as it is."""
    mutations = [
        Mutation(
            kind=place["kind"],
            file=area["file"],
            before=place["before"],
            after=after,
            tests=tuple(area["tests"]),
        )
        for area in tomllib.loads(TABLE.read_text())["area"]
        for place in area["place"]
        for after in place["after"]
    ]
    for mutation in mutations:
        planted((ROOT / SOURCE / mutation.file).read_text(), mutation)
    return mutations


def planted(text: str, mutation: Mutation) -> str:
    """The source with an error in it."""
    if text.count(mutation.before) != 1:
        raise ValueError(
            f"{mutation.file} must hold the text of a mutation exactly once: found "
            f"{mutation.before!r} {text.count(mutation.before)} times. Mend the table."
        )
    return text.replace(mutation.before, mutation.after)


def copy_tree(tree: Path) -> None:
    """A copy of what the tests need."""
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy2(ROOT / name, tree / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest in a tree, and the first test that failed. Call it in a fresh process."""
    os.chdir(tree)
    sys.path[:0] = [str(tree / "src"), str(tree)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        # A busy machine must not pass for a test that found something, and errors of one are found
        # without the checks of shapes, which take most of the time.
        code = pytest.main(
            [
                "-x",
                "-q",
                *("-o", f"timeout={MOST_SECONDS}"),
                *("-o", "addopts=--import-mode=importlib"),
                *("-m", "not slow and not gpu and not data"),
                *tests,
            ]
        )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", printed.getvalue(), re.MULTILINE)
    return int(code), failed.group(1) if failed else printed.getvalue()[-300:]


def try_out(base: Path, commit: str, number: int, mutation: Mutation) -> Outcome:
    """Plant an error in a copy of a tree and run its tests."""
    begin = time.perf_counter()
    tree = base.with_name(str(number))
    shutil.copytree(base, tree)
    path = tree / SOURCE / mutation.file
    path.write_text(planted(path.read_text(), mutation))
    code, by = run_tests(tree, mutation.tests)
    os.chdir(base)
    shutil.rmtree(tree)
    outcome = {0: "survived", 1: "caught"}.get(code, "broken")
    return Outcome(
        kind=mutation.kind,
        file=mutation.file,
        before=mutation.before,
        after=mutation.after,
        outcome=outcome,
        by="" if outcome == "survived" else by,
        seconds=round(time.perf_counter() - begin, 1),
        commit=commit,
    )


def try_all(mutations: Sequence[Mutation], num_workers: int) -> Iterator[Outcome]:
    """Try mutations in turn, each in a process of its own that has torch loaded already."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        copy_tree(base)
        commit = this_commit()
        with fork.Pool(num_workers, maxtasksperchild=1) as pool:
            tests = sorted({test for mutation in mutations for test in mutation.tests})
            code, by = pool.apply(run_tests, (base, tests))
            if code:
                raise SystemExit(f"Without any planted error all tests must pass: {by}")
            waiting = [
                pool.apply_async(try_out, (base, commit, number, mutation))
                for number, mutation in enumerate(mutations)
            ]
            for result in waiting:
                outcome = result.get()
                print(
                    f"{outcome.outcome:9} {outcome.seconds:6.1f} s  {outcome.kind:24} "
                    f"{outcome.file}: {outcome.by}",
                    flush=True,
                )
                yield outcome


def place(planted: Mutation | Outcome) -> tuple[str, str, str, str]:
    """What tells an entry of the table from all others."""
    return planted.kind, planted.file, planted.before, planted.after


def read_outcomes(path: Path) -> dict[tuple[str, str, str, str], Outcome]:
    """Outcomes of an earlier run, without those that say nothing about an error."""
    if not path.exists():
        return {}
    found = [Outcome(**one) for one in json.loads(path.read_text())["planted"]]
    return {place(one): one for one in found if one.outcome != "broken"}


def in_order(
    known: Mapping[tuple[str, str, str, str], Outcome], mutations: Sequence[Mutation]
) -> dict[str, Any]:
    """Outcomes of entries that the table still has, in its order, as a result."""
    outcomes = [known[place(one)] for one in mutations if place(one) in known]
    return {"num_planted": len(outcomes), "planted": [asdict(outcome) for outcome in outcomes]}


def page(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a page of the documentation."""
    caught = sum(outcome.outcome == "caught" for outcome in outcomes)
    lines = [
        "# Planted off-by-one errors",
        "",
        "Every line of the table changes one place of the source by one tick, step, block or",
        "element. `benchmarks/mutations.py` makes the change in a copy of the tree and runs the",
        "tests of its area, and `benchmarks/results/mutations.json` holds the outcomes:",
        f"{caught} of {len(outcomes)} changes are caught.",
        "",
        "| what | where | from | to | first test that fails |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        cells = (
            outcome.kind,
            f"`{outcome.file}`",
            f"`{shown(outcome.before)}`",
            f"`{shown(outcome.after)}`",
            f"`{outcome.by.split('::')[-1]}`" if outcome.by else f"**{outcome.outcome}**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(text: str) -> str:
    """A piece of source as it is shown in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kinds or files that hold this text")
    parser.add_argument("--missing", action="store_true", help="those without an outcome in --out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="check the table and plant nothing")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mutations.json")
    args = parser.parse_args()
    mutations = read_table()
    if args.check:
        return
    known = read_outcomes(args.out)
    chosen = [
        one
        for one in mutations
        if args.only in f"{one.kind} {one.file}" and not (args.missing and place(one) in known)
    ]
    question = "Does a test fail for every planted error of one in time?"
    for outcome in try_all(chosen, args.workers) if chosen else ():
        known[place(outcome)] = outcome
        keep(question, in_order(known, mutations), str(args.out))
    outcomes = [known[place(one)] for one in mutations if place(one) in known]
    if args.page:
        args.page.write_text(page(outcomes))
    survived = [outcome for outcome in outcomes if outcome.outcome != "caught"]
    print(f"{len(outcomes) - len(survived)} of {len(outcomes)} planted errors are caught")
    if survived or len(outcomes) < len(mutations):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
