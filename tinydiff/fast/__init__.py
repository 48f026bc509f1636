"""The engine room: faster forms of the book's functions.  README.md describes each file; install.py puts the forms in
place."""
