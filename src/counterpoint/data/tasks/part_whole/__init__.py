"""partwhole: tasks that need the whole of a text, its detail, or both.

The answers need *scope* (how much of the text must be seen at once) and depend on the *dispersion*
of the evidence (how scattered it is). `TASKS` has the tasks by name, in their default size.
"""

from typing import get_args

from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.part_whole.audit import StreamAudit
from counterpoint.data.tasks.part_whole.cloze import KeyedCloze
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.navon import Navon
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.data.tasks.part_whole.sections import Sections

PartWholeTask = Navon | KeyedCloze | Sections | Logbook | StreamAudit | Acrostic | RandomHierarchy
"""One of the tasks with synthetic texts."""

TASKS: dict[str, PartWholeTask] = {
    task.name: task for task in (kind() for kind in get_args(PartWholeTask))
}
"""The tasks with synthetic texts, T1 to T7, by name."""

SMALL: dict[str, PartWholeTask] = {
    "navon_small": Navon(
        num_blocks=10,
        block_symbols=6,
        period=2,
        majority=0.9,
        num_letters=8,
        num_named=3,
        verdicts=True,
    ),
    "sections_small": Sections(
        num_sections=5, num_keys=4, num_questions=8, filler=0, num_values=10
    ),
    "logbook_small": Logbook(
        num_events=18, num_entities=4, whole_share=0.3, num_named=3, least_events=12
    ),
    "audit_small": StreamAudit(
        num_registers=4,
        num_steps=24,
        claim_share=0.6,
        largest_change=1,
        false_share=0.25,
        first_claim=12,
        question_share=0.4,
    ),
    "acrostic_small": Acrostic(filler=16, lengths=(4, 6)),
}
"""Small forms of T1, T3, T4, T5 and T6, by name: they ask more often, and can be learned sooner."""

MINUTES: dict[str, PartWholeTask] = {
    "acrostic_minutes": Acrostic(num_lines=4, filler=36, lengths=(4,)),
}
"""A form for a first look within minutes, by name; its plan stands 40 symbols before the poem."""

SECONDS: dict[str, PartWholeTask] = {
    "sections_seconds": Sections(
        num_sections=4, num_keys=1, num_questions=4, filler=0, num_values=10
    ),
}
"""A form that is learned within seconds, by name; with one key it asks for no detail."""

FORMS: dict[str, PartWholeTask] = TASKS | SMALL | MINUTES | SECONDS
"""All tasks that a grid may have, by name."""
