"""The weekly review: store rows in, one self-contained page, Markdown and JSON out.

``gather`` reads the store into the frozen tree of ``review``; ``words`` turns the tree into sentences; ``as_html``,
``as_markdown`` and ``as_json`` print both. ``page`` is the same review over the last hour, for the sidecar.
"""
