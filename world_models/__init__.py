"""Things that predict. They know nothing of environments, files or the command line."""
