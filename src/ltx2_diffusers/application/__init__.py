"""What an application asks for, answered with the pipelines."""
