"""Tables that name audio and text: csv, tsv, jsonl, parquet and xlsx, read row by row, a bad row for itself."""
