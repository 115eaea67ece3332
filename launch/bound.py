"""`python bound.py PARENT PROGRAM ARGUMENTS`: becomes the program, which the kernel ends when its parent ends.

Not by code between fork and exec: a fork runs the handlers of gRPC, whose threads live in the bridge, and a child of
those may die before it has become the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
