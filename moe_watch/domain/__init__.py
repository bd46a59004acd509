"""What the product is about, as data: a finished request, a window of them, and the state of a replica."""
