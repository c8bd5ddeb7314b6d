"""The worker processes of a server, looked after so that one which dies while it starts holds up nothing."""

from __future__ import annotations

from multiprocessing import connection

from uvicorn.supervisors import multiprocess


class Worker(multiprocess.Process):
    """A worker of uvicorn's. Uvicorn waits as long for an answer of one that has died as for one of any other."""

    def is_alive(self, timeout: float = 5) -> bool:
        """Return whether the worker runs and answers within ``timeout`` seconds; at once where it has died, or dies meanwhile."""
        if not self.process.is_alive():
            return False
        try:
            self.parent_conn.send(b"ping")
            if self.parent_conn not in connection.wait([self.parent_conn, self.process.sentinel], timeout):
                return False
            self.parent_conn.recv()
        except (OSError, EOFError):
            return False
        return True


def look_after_workers() -> None:
    """Let ``uvicorn.run(workers=...)`` start ``Worker``; it takes the class from its module, and has no option for it."""
    multiprocess.Process = Worker  # type: ignore[misc]
