"""What does `import counterpoint` add to `import torch`? Bar: 0.5 s. The last line is JSON."""

import argparse
import statistics
import subprocess
import sys
from typing import Any

from record import finish

BAR_S = 0.5
SCRIPT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from counterpoint import TwoStream, generate
print(middle - start, time.perf_counter() - middle)
"""


def measure() -> tuple[float, float]:
    """Seconds for torch, and for counterpoint after it, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    torch_s, added_s = map(float, done.stdout.split())
    return torch_s, added_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    args = parser.parse_args()
    measure()  # fills the file cache
    torch_s, added_s = zip(*(measure() for _ in range(args.repeats)), strict=True)
    result: dict[str, Any] = {
        "torch_p50_s": round(statistics.median(torch_s), 3),
        "added_p50_s": round(statistics.median(added_s), 3),
        "added_max_s": round(max(added_s), 3),
        "bar_s": BAR_S,
        "repeats": args.repeats,
    }
    verdict = "within" if result["added_p50_s"] <= BAR_S else "OVER"
    print(f"import torch {result['torch_p50_s']} s; counterpoint adds {result['added_p50_s']} s")
    print(f"({verdict} the bar of {BAR_S} s; median of {args.repeats})")
    finish("import", result, args.out)


if __name__ == "__main__":
    main()
