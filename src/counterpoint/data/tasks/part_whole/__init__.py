"""partwhole: tasks that need the whole of a text, its detail, or both.

The answers need *scope* (how much of the text must be seen at once) and depend on the *dispersion*
of the evidence (how scattered it is). `TASKS` has the tasks by name, in their default size.
"""

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
    task.name: task
    for task in (
        Navon(),
        KeyedCloze(),
        Sections(),
        Logbook(),
        StreamAudit(),
        Acrostic(),
        RandomHierarchy(),
    )
}
"""The tasks with synthetic texts, T1 to T7, by name."""

SMALL: dict[str, PartWholeTask] = {
    "navon_a": Navon(
        num_blocks=8, block_symbols=6, period=2, majority=0.9, num_letters=6, verdicts=True
    ),
    "navon_b": Navon(
        num_blocks=10,
        block_symbols=6,
        period=2,
        majority=0.9,
        num_letters=8,
        num_named=3,
        verdicts=True,
    ),
    "sections_a": Sections(num_sections=5, num_keys=4, num_questions=8, filler=0, num_values=10),
    "sections_b": Sections(
        num_sections=5, num_keys=5, num_questions=6, filler=0, num_values=10, num_early=1
    ),
    "logbook_a": Logbook(
        num_events=18, num_entities=4, whole_share=0.3, num_named=3, least_events=12
    ),
    "logbook_b": Logbook(num_events=24, num_entities=6, whole_share=0.3, num_named=4),
    "logbook_c": Logbook(
        num_events=24, num_entities=6, whole_share=0.3, num_named=4, least_events=15
    ),
    "audit_a": StreamAudit(
        num_registers=6,
        num_steps=24,
        claim_share=0.7,
        largest_change=2,
        false_share=0.25,
        first_claim=12,
    ),
    "audit_b": StreamAudit(
        num_registers=4,
        num_steps=24,
        claim_share=0.6,
        largest_change=1,
        false_share=0.25,
        first_claim=12,
        question_share=0.4,
    ),
    "acrostic_a": Acrostic(filler=16, lengths=(4, 6)),
    "acrostic_b": Acrostic(filler=24, lengths=(4, 6, 8)),
}
"""Candidates for small forms."""

FORMS: dict[str, PartWholeTask] = TASKS | SMALL
"""All tasks that a grid may have, by name."""
