"""Bytes on disk: readers, the shard writer, verification. Knows no layers and no models."""
