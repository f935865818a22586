"""Files in object stores and on servers, read in parts through fsspec and kept in a local cache of bounded size."""
