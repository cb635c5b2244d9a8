"""Convert an original LTX-2 checkpoint file into a folder in diffusers' layout: `ltx2 convert --to diffusers`."""

import sys

from ltx2_diffusers.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", "--to", "diffusers", *sys.argv[1:]]))
