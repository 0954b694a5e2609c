//! What a container sees of its host: `-v`, `--mount`, `--tmpfs`.

use clap::Args;
use engine::volumes::{MountSpec, VolumeError, parse, secret};

/// Options of `run` and `create`.
#[derive(Args)]
pub struct VolumeArgs {
    /// Mount a directory or file of the host, or a volume
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:ro]")]
    pub volume: Vec<String>,
    /// The same in words: type=bind|volume|tmpfs,source=SOURCE,target=TARGET,readonly
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// Mount memory, for example /run:size=64m,mode=755
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Give it a file as /run/secrets/NAME, in memory only; without FILE the file NAME
    #[arg(long, value_name = "NAME[=FILE]")]
    pub secret: Vec<String>,
}

impl VolumeArgs {
    /// For the engine.
    pub fn mounts(&self) -> Result<Vec<MountSpec>, VolumeError> {
        let volumes = self.volume.iter().map(|text| parse::volume(text));
        let mounts = self.mount.iter().map(|text| parse::mount(text));
        let tmpfs = self.tmpfs.iter().map(|text| parse::tmpfs(text));
        let secrets = secret::parse(&self.secret)?.map(Ok);
        volumes.chain(mounts).chain(tmpfs).chain(secrets).collect()
    }
}
