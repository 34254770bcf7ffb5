"""What a worker may be asked to do, for tests of it; imports nothing, as it is started anew."""

import os
import time


def task(kind, argument):
    if kind == "double":
        return os.getpid(), 2 * argument
    if kind == "raise":
        raise ValueError(argument)
    if kind == "sleep":
        time.sleep(argument)
    if kind == "grow":
        return os.getpid(), len(bytearray(argument * 2**20))
    os._exit(argument)
