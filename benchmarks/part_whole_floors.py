"""What policies get that see a part of the text of every partwhole task: its floors.

Writes the published table: python benchmarks/part_whole_floors.py
"""

import json
from pathlib import Path

from counterpoint.data.tasks.items import HELD_OUT_SEED, floors
from counterpoint.data.tasks.part_whole import FORMS, TASKS

OUT = Path(__file__).parents[1] / "docs" / "results" / "part_whole_floors.json"
NUM_ITEMS = 50_000
NUM_SMALL_ITEMS = 10_000


def rounded(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        policy: {kind: round(value, 3) for kind, value in found.items()}
        for policy, found in scores.items()
    }


def main() -> None:
    tasks = {}
    for name, task in FORMS.items():
        # Some small forms have shorter items to learn from than to be scored on.
        seed = HELD_OUT_SEED if name not in TASKS else 0
        num_items = NUM_SMALL_ITEMS if name not in TASKS else NUM_ITEMS
        found = rounded(floors(task, num_items, seed))
        tasks[name] = {
            "primary": task.primary,
            "items": num_items,
            "seed": seed,
            "floors": found,
            "first 100": rounded(floors(task, 100, seed)),
        }
        print(name, json.dumps(found, indent=1))
    OUT.write_text(json.dumps({"tasks": tasks}, indent=1) + "\n")
    print(OUT)


if __name__ == "__main__":
    main()
