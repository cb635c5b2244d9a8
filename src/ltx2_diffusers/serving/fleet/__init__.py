"""Clips made on several GPUs or machines by Ray Serve: `ltx2 serve --ray`. Ray comes with the extra `ray`."""
