"""Stored calls: calls that outlive their connections. The only package that imports SQLAlchemy.

``schema`` has the tables, ``database`` the connections and their threads, ``records`` every statement, ``stored_calls`` the
steps of a stored call, ``routes`` its HTTP, ``webhooks`` the messages about its end.
"""
