"""Code that both halves use: audio, text, features, the bundle, the command line."""
