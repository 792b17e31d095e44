"""Work that is done on a Ray cluster."""

import contextlib
import os
import pickle
import re
import socket
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.processes import attempted

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LOCAL = "local"
"""The address that starts a cluster on this machine; the cluster ends with the work."""

_MOST_TRIES = 5
_KNOCK_S = 10.0


def work_on_ray(
    work: Callable[[_Item], _Result],
    items: Sequence[_Item],
    address: str,
    *,
    num_workers: int | None = None,
) -> Generator[_Result, None, None]:
    """Do the same work on many items, on the machines of a Ray cluster.

    As in `counterpoint.processes.work_in_processes`, every process gets ``work`` as a pickled copy
    that stays available, computes with one thread and takes one core. If the machine of an item
    dies, the item is begun again on another one. If the generator is not read to its end, close it,
    best with `contextlib.closing`: that ends the work.

    Args:
        work: Function of one item. It and its results must be picklable. Its package must be
            installed on all machines; a shared disk is not needed.
        items: The items, begun in this order.
        address: Address of the cluster: "auto" finds a cluster that runs on this machine,
            ``ray://HOST:10001`` is one elsewhere, and `LOCAL` starts one. It is ignored if ``ray``
            is already connected.
        num_workers: Largest number of items at the same time; by default one for each core of
            the cluster, including machines that join later.

    Yields:
        A result for each item, in the order in which they are done.

    Raises:
        UserError: There is no cluster at that address, or the package ``ray`` is missing.
        OSError: Processes with the same item ended again and again.
        Exception: Any error that ``work`` raises.
    """
    ray = optional_module("ray")
    connected = _connect(ray, address)
    pending = list[Any]()
    try:
        task = ray.remote(num_cpus=1, max_retries=_MOST_TRIES - 1)(_attempt)
        copied = ray.put(pickle.dumps(work))
        waiting = deque(items)
        while waiting or pending:
            room = num_workers or int(ray.cluster_resources().get("CPU", 1))
            while waiting and len(pending) < max(room, 1):
                pending.append(task.remote(copied, waiting.popleft()))
            # The wait has a limit, because machines may join meanwhile.
            ready, pending = ray.wait(pending, num_returns=1, timeout=5.0)
            for reference in ready:
                yield _result(ray, reference)
    finally:
        for reference in pending:
            with contextlib.suppress(Exception):  # the cluster may be gone
                ray.cancel(reference, force=True)
        if connected:
            ray.shutdown()


def _connect(ray: Any, address: str) -> bool:
    """Connect if there is no connection yet, and return whether this call did."""
    if ray.is_initialized():
        return False
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"A Ray cluster must answer at {address!r}: {why[0].rstrip('.')}. Start one with `ray "
            f"start --head`, or take the address {LOCAL!r}."
        ) from error
    return True


def _knock(address: str) -> None:
    """Check quickly whether a host answers, because Ray would ask it for minutes.

    Raises:
        OSError: Nobody answers.
    """
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address)
    if found:
        host, port = found.groups()
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _result(ray: Any, reference: Any) -> Any:
    try:
        content = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise OSError(
            f"A process on Ray must give a result: {type(error).__name__} after {_MOST_TRIES} "
            "tries. Check that its machine has enough memory, then run again: finished results are "
            "kept."
        ) from error
    done, value = pickle.loads(content)
    if not done:
        raise value
    return value


def _attempt(work: bytes, item: Any) -> bytes:
    """Do the work on one item in a process of the cluster."""
    import torch

    # Sums may depend on the number of threads.
    torch.set_num_threads(1)
    try:
        return attempted(_ready(work), item)
    except (KeyboardInterrupt, SystemExit):
        os._exit(1)  # its machine is being shut down: Ray begins the item on another one


@lru_cache(maxsize=1)
def _ready(work: bytes) -> Callable[[Any], Any]:
    """Return the work, unpickled once for all items of a process; its engines stay alive."""
    loaded: Callable[[Any], Any] = pickle.loads(work)
    return loaded
