"""The dashboard's rows, a module each."""
