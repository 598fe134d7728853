"""Fetch models: ``percore fetch URI FOLDER``, the init container of a pod whose models come from ``model.uri``.

``uri`` reads the URI, ``object_store`` is the only module that uses object stores, ``transfer`` moves bytes, ``archive``
unpacks, ``layout`` finds the models in the files, and ``command`` uses all of them. Only ``percore.cli`` imports this package,
so no process that serves loads its libraries.
"""
