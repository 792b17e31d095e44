"""Runs the study `counterpoint.recipes.thought_stream`.

Usage: python benchmarks/run_thought_stream.py --out FOLDER [--device cuda] [--prepare] [--report]
[--seeds 0,1,2,3,4] [--steps 1200] [--declare FILE]
"""

import argparse
from dataclasses import replace
from pathlib import Path

from counterpoint.files import write_json
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.thought_stream import (
    declaration,
    run_thought_stream,
    thought_stream_study,
)
from counterpoint.recipes.thought_stream_report import report_thought_stream


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/thought_stream"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepare", action="store_true", help="only record the batches")
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--declare", type=Path, help="only write what is declared before a run")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=thought_stream_study().train.num_steps)
    parser.add_argument("--num-items", type=int, default=thought_stream_study().num_items)
    options = parser.parse_args()
    study = thought_stream_study()
    study = replace(
        study,
        seeds=tuple(map(int, options.seeds.split(","))),
        train=replace(study.train, num_steps=options.steps),
        num_items=options.num_items,
    )
    if options.declare:
        write_json(options.declare, declaration(study))
        return
    if not options.report:
        run_thought_stream(study, options.out, options.device, batches_only=options.prepare)
    if not options.prepare:
        records = read_records(options.out / "thought_stream.parquet")
        print("\n".join(report_thought_stream(study, options.out, records)))


if __name__ == "__main__":
    main()
