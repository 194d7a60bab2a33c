"""Shared by both sides: messages, recordings, run files. Loads numpy, msgspec, pyzmq and sqlite3 only."""
