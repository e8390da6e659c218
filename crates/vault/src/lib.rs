//! The vault format: segments, content objects, manifests, snapshot reading, verify.
