"""Stands for an interpreter that a fork of touches.py's server is: hands over its words, and ends as the fork ends.

python -I -S forked_python.py SOCKET WORDS
"""

import json
import os
import signal
import socket
import sys


def main(place: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        request = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        told = server.makefile()
        fork = int(told.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(fork, number))
        code = int(told.readline() or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
