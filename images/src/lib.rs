//! OCI images: references, transports, the content store, and the root filesystem built from layers. Knows no VM.
