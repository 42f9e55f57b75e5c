"""Run nvcc and fail where ptxas only informs: a kernel whose wgmma it serialized is several times slower.

CMake starts this in front of the compiler. ptxas calls it information (C7510 and its neighbours), so no
option makes it an error.
"""

from __future__ import annotations

import subprocess
import sys

SERIALIZED = "wgmma.mma_async instructions are serialized"


def main(command: list[str]) -> int:
    """Run `command`, show what it says, and return its status, or 1 where wgmma was serialized."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    sys.stderr.write(done.stdout)
    if done.returncode == 0 and SERIALIZED in done.stdout:
        print("error: ptxas serialized wgmma, see above", file=sys.stderr)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
