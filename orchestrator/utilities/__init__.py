"""Small things that flow authors import by their own path."""
