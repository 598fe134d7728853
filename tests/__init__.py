"""Tests. ``unit`` needs no process and no port, ``service`` runs the real service, ``bench`` measures."""
