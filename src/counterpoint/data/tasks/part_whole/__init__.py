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
