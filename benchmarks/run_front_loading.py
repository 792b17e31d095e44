"""Runs the study of front-loading, whose size and groups can be chosen.

Usage: python benchmarks/run_front_loading.py FOLDER [--workers N] [--groups "cross,latent"]
[--seeds 0,1] [--declare FILE] [--report]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from counterpoint.recipes.front_loading import front_loading_study
from counterpoint.recipes.front_loading_run import (
    declared,
    report_front_loading,
    run_front_loading,
)


def main() -> None:
    """Declare, run and report the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--groups", default="cross")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--declare", type=Path, help="only write what is declared to this file")
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    study = replace(
        front_loading_study(),
        groups=tuple(options.groups.split(",")),
        seeds=tuple(map(int, options.seeds.split(","))),
    )
    if options.declare is not None:
        options.declare.write_text(json.dumps(declared(study), indent=1) + "\n", encoding="utf-8")
        return
    if not options.report:
        run_front_loading(study, options.folder, workers=options.workers)
    print(report_front_loading(study, options.folder))


if __name__ == "__main__":
    main()
