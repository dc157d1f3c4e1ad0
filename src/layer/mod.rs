//! Tar streams of layers into trees.
