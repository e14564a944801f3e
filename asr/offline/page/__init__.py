"""The demo page: speak or upload, and read what the base model and the tuned one write. Also an API for programs."""
