"""Where weights lie while they are not computed with: in host memory or in their file, from which blocks come one by one."""
