"""Code that runs on the air-gapped box: training, decoding, metrics, the demo page."""
