"""A review as HTML, Markdown and JSON, and the page of the sidecar."""
