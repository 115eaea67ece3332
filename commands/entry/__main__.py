"""`python commands/entry COMMAND ...`: runs a command of `./sca` and imports nothing from the current directory.

`python -m commands` imports from the current directory first, and Python 3.10 has no option against that. Python puts
the folder of this file, which contains no other module, in front of its path instead.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:] = [ROOT, *(path for path in sys.path[1:] if os.path.isabs(path))]

if __name__ == "__main__":
    from commands.__main__ import main

    sys.exit(main())
