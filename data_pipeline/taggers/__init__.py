"""The taggers beyond language and CLIP, one to a file: its settings, its columns and its stages."""
