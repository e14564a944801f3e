"""Shared code of whisper-offline-training; the scripts at the root are its only callers."""
