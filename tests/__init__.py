"""Tests.

``unit`` needs no service, ``service`` and ``gateway`` run real processes, ``chart`` and ``rules`` render the chart, ``e2e``
needs a cluster.
"""
