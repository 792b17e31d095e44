"""What policies get that see a part of a question of every reasoning family: its floors.

Writes the published table: python benchmarks/reasoning_floors.py
"""

import json
from pathlib import Path

from part_whole_floors import rounded

from counterpoint.data.tasks.items import floors
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.families import FAMILIES

OUT = Path(__file__).parents[1] / "docs" / "results" / "reasoning_floors.json"
NUM_ITEMS = 5000


def main() -> None:
    families = {}
    for name in FAMILIES:
        task = Reasoning(families=(name,))
        found = rounded(floors(task, NUM_ITEMS, seed=0))
        families[name] = {"floors": found, "first 100": rounded(floors(task, 100, seed=0))}
        print(name, json.dumps(found))
    OUT.write_text(
        json.dumps({"items": NUM_ITEMS, "seed": 0, "families": families}, indent=1) + "\n"
    )
    print(OUT)


if __name__ == "__main__":
    main()
