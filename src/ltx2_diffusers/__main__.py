"""`python -m ltx2_diffusers` is `ltx2`; so is `torchrun -m ltx2_diffusers`, which shares a generation among devices."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
