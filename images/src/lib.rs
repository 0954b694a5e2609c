//! OCI images: references, transports, the content store, and the root filesystem built from layers. Knows no VM.
//!
//! ```text
//! text ─► ImageSource ─► Store::pull ─► Image ─► root filesystem
//!            registry ─┐     │            └ configuration, layers by digest
//!            archives ─┴► blobs/, refs/
//! ```

pub mod artifact;
pub mod auth;
pub mod commit;
pub mod digest;
pub mod erofs;
pub mod ext4;
pub mod fetch;
pub mod healthcheck;
pub mod history;
pub mod image;
pub mod manifest;
mod parallel;
pub mod platform;
pub mod progress;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
mod retry;
pub mod rootfs;
pub mod save;
pub mod signature;
pub mod source;
pub mod store;
mod tag;
pub mod unpack;

pub use digest::{ChainId, DiffId, Digest};
pub use image::{Contents, Image, Layer};
pub use manifest::Compression;
pub use platform::Platform;
pub use progress::{Event, Progress, Silent};
pub use pull::{PullError, PullOptions, PullPolicy};
pub use reference::Reference;
pub use registry::RegistryOptions;
pub use rootfs::ensure_rootfs;
pub use source::ImageSource;
pub use store::{DiskUsage, ImageSummary, Store, StoreError};
