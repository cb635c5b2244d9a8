"""The HTTP server: `ltx2 serve`. Its packages come with the extra `serve`."""
