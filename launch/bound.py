"""`python bound.py PARENT PROGRAM ARGUMENTS`: executes the program, which the kernel terminates when its parent ends.

A separate program replaces code between fork and exec (`preexec_fn`), since gRPC's fork handlers run there: gRPC has
threads in the bridge's process, and such a child may die before exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # value in <sys/prctl.h>

ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one has ended")
os.execv(sys.argv[2], sys.argv[2:])
