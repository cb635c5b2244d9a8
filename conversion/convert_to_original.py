"""Convert a folder in diffusers' layout into one original LTX-2 checkpoint file: `ltx2 convert --to original`."""

import sys

from ltx2_diffusers.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "original", *sys.argv[1:]]))
