"""Inside the engine process: counts the experts of each request."""
