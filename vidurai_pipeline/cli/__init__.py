"""The command line: each command calls one thing and shows what came back."""
