"""Methods that tune a solved block against its output, one a file."""
