"""Fetch models: ``percore fetch URI FOLDER``, the init container of a pod whose models come from ``model.uri``.

``uri`` reads the URI, ``object_store`` is the one door to object stores, ``transfer`` moves bytes, ``archive`` unpacks,
``layout`` finds the models in the files, and ``command`` puts them together. Only ``percore.cli`` imports this package, so
no process that serves loads its libraries.
"""
