"""LoRA: files, layouts and their life on a pipeline."""
