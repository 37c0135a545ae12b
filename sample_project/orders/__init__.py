"""Order lines and pieces: what the library has ordered."""
