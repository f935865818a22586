"""Images whose bytes are in the rows of Parquet files, or of Arrow files that Hugging Face's datasets have saved."""
