"""`python -m experiments`: lists the experiments; `python -m experiments NAME ...` runs one."""

import sys

from experiments.harness.catalogue import dispatch

if __name__ == "__main__":
    sys.exit(dispatch(sys.argv[1:]))
