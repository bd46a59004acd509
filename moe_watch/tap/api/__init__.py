"""Inside the API server: times requests and, if asked to, samples text."""
