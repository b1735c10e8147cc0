//! What a proof leaves behind.
