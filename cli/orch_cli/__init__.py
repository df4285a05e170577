"""The command ``orch``: one file per noun, ``main`` puts them together, ``output`` is the only printer."""
