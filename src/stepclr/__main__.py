"""The program `stepclr`; `python -m stepclr` is the same."""

import atexit
import os
import sys
from typing import NoReturn


def program() -> NoReturn:
    """`stepclr.cli.main`, whose exit code this process ends with.

    Once all is done, the process ends at once: Python would take torch apart first, which takes a second or two.
    """
    code = 1  # of an exception that nobody expected: Python prints it

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        os._exit(code)

    # Handlers are called when all threads have ended, the first registered last. So this comes before any import.
    atexit.register(leave)
    try:
        from stepclr.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        code = 130
        raise


if __name__ == "__main__":
    program()
