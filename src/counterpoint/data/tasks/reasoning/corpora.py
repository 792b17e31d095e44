"""The four corpora of Front-Loading Reasoning as settings of the knobs, and matched controls.

The paper compares a large diverse corpus of mixed quality with a small good one, so that diversity,
quality, length, number of items and repetition change together. The controls change one at a time.

Source: Front-Loading Reasoning (arXiv:2510.03264), section 2: a corpus of 268 million short
examples in many domains, 1.2 million examples with long answers of a strong teacher (0.4 % of the
first), their union, and the 2 % of the first with the longest answers.
"""

from dataclasses import replace

from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.joined import JoinedReasoning
from counterpoint.data.tasks.reasoning.plain import PlainText

_SMALL_SHARE = 0.004
_LONGEST_OF = 50


ReasoningTask = Reasoning | JoinedReasoning | PlainText
"""One of the kinds of corpora."""


def corpora(num_items: int = 1_000_000) -> dict[str, ReasoningTask]:
    """Return the corpora by name.

    * "plain": text without reasoning, with the same symbols and words.
    * "large noisy": all families, templates and shapes; every fifth step is wrong, half of the
      steps are missing.
    * "small good": three families in the paper's shares of 71, 21 and 8 %, two templates; longer,
      complete and right; 0.4 % as many items, so that they repeat.
    * "union": all items of both.
    * "longest": the item with the longest solution of every 50 of "large noisy".
    * "large noisy, few": as many items as "small good".
    * "small good, many": as many items as "large noisy".
    * "large good": as diverse as "large noisy", without its faults.
    * "small noisy": as narrow as "small good", with the faults of "large noisy".

    Args:
        num_items: Number of items of the large corpora, at least 250.
    """
    few = max(round(_SMALL_SHARE * num_items), 1)
    noisy = Reasoning(
        step_errors=0.2, skipped_steps=0.5, operations=(1, 6), unique=num_items, most_symbols=640
    )
    good = Reasoning(
        families=("arithmetic", "listops", "graphs"),
        shares=(71.0, 21.0, 8.0),
        templates=(0, 1),
        operations=(5, 10),
        unique=few,
        most_symbols=640,
    )
    return {
        "plain": PlainText(),
        "large noisy": noisy,
        "small good": good,
        "union": JoinedReasoning(parts=(noisy, good)),
        "longest": replace(noisy, longest_of=_LONGEST_OF, unique=num_items // _LONGEST_OF),
        "large noisy, few": replace(noisy, unique=few),
        "small good, many": replace(good, unique=num_items),
        "large good": replace(noisy, step_errors=0.0, skipped_steps=0.0),
        "small noisy": replace(good, step_errors=0.2, skipped_steps=0.5),
    }
