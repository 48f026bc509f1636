"""What the programs share: options, files, pictures, drawing and long runs.  Read next: cli.py."""
