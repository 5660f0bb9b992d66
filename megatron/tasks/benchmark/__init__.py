"""`tools/run_clue.py`: many runs, their table, and the archive of result files."""
