"""The commands of `bertkit`: each module declares its arguments, runs, and prints for people or as JSON."""
