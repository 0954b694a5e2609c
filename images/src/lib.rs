//! OCI images: references, transports, the content store, and the root filesystem built from layers. Knows no VM.
//!
//! ```text
//! text ─► ImageSource ─► Store::pull ─► Image ─► root filesystem
//!            registry ─┐     │            └ configuration, layers by digest
//!            archives ─┴► blobs/, refs/
//! ```

pub mod digest;
pub mod image;
pub mod manifest;
pub mod platform;
pub mod progress;
pub mod reference;
pub mod source;
pub mod store;

pub use digest::{ChainId, DiffId, Digest};
pub use image::{Contents, Image, Layer};
pub use manifest::Compression;
pub use platform::Platform;
pub use progress::{Event, Progress, Silent};
pub use reference::Reference;
pub use source::ImageSource;
pub use store::{DiskUsage, ImageSummary, Store, StoreError};
