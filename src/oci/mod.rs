//! Digests, references, manifests and the archives that carry them.
