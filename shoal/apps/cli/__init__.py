"""The command line: each module parses, calls and prints for some of the commands."""
