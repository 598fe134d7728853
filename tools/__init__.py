"""What maintains the project: generated files, lock files."""
