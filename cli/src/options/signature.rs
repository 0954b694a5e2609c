//! `--verify-key`: who must have signed an image.

use std::path::PathBuf;

use clap::Args;
use images::PullOptions;
use images::signature::PublicKey;

/// Who must have signed it.
#[derive(Args, Clone, Debug)]
pub struct SignatureArgs {
    /// Refuse an image that this public key has not signed, as `cosign sign --key` does
    #[arg(long, value_name = "FILE")]
    pub verify_key: Option<PathBuf>,
}

impl SignatureArgs {
    /// The same way of pulling, for images of this key only.
    pub fn restrict(&self, options: PullOptions) -> anyhow::Result<PullOptions> {
        let signed_by = self.verify_key.as_deref().map(PublicKey::open).transpose()?;
        Ok(PullOptions { signed_by, ..options })
    }
}
