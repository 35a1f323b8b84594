"""The commands of run.py: each parses its options, calls what does the work, and prints."""
