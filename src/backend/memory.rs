//! In-memory double.
