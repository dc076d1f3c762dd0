"""Runs a function of patients on several processes.

In: a function and its arguments. Out: the results, in the order of the arguments.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from tfds_builder.commandline.command import follow_parent
from tfds_builder.commandline.errors import UserError

Result = TypeVar("Result")


def run_all(
    function: Callable[..., Result],
    arguments: Sequence[tuple],
    workers: int,
    report: Callable[[int], None],
) -> list[Result]:
    """Returns `function(*own)` for each of the arguments, in their order.

    Linear algebra in it has one thread: a second would wait, at full load, for small products, on
    a core that another process needs.

    Args:
      function: of a module, so that processes can import it.
      arguments: at least one where there are several workers.
      workers: processes; one is this process.
      report: gets how many are done, after each.

    Raises:
      UserError: the function raised it; a worker was ended from outside.
    """
    results: list[Result] = []
    if workers == 1:
        for own in arguments:
            results.append(_in_one_thread(function, *own))
            report(len(results))
        return results
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(arguments)), multiprocessing.get_context("spawn"), follow_parent
    )
    try:
        for task in [pool.submit(_in_one_thread, function, *own) for own in arguments]:
            results.append(task.result())
            report(len(results))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was ended from outside (out of memory?): run the same command again, "
            "perhaps with fewer --workers; a cohort goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _in_one_thread(function: Callable[..., Result], *own: Any) -> Result:
    with threadpool_limits(1, "blas"):
        return function(*own)
