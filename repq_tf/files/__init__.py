"""Files: their paths, and writing them whole or not at all."""

from repq_tf.files.atomic import is_temporary, replacing, write_atomically
from repq_tf.files.paths import file_path, new_file

__all__ = ["file_path", "is_temporary", "new_file", "replacing", "write_atomically"]
