"""From a folder of clips to what training reads."""
