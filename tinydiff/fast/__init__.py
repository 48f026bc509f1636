"""The engine room: what only makes the book faster.  README.md says what is here; install.py puts it in place."""
