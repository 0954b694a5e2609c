//! Builds the static programs that lighter carries, whatever is being built around them.

use std::error::Error;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// One program: what builds it, and what it is built from.
struct Program {
    package: &'static str,
    binary: &'static str,
    /// Profile in the workspace's manifest.
    profile: &'static str,
    rustflags: &'static str,
    sources: &'static [&'static str],
}

/// At a random address: it is what a guest would attack. Random numbers by system call: a cage has no `/dev/random`,
/// which `getrandom` would look at where there is no dynamic loader to ask for the function.
const VMM_FLAGS: &str = "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";

const PROGRAMS: [Program; 5] = [
    Program {
        package: "agent",
        binary: "agent",
        profile: "agent",
        // At a fixed address: relocating itself would cost the guest page faults.
        rustflags: "-C target-feature=+crt-static -C relocation-model=static -C link-arg=-Wl,--icf=all,-O2,--build-id=none",
        sources: &["agent", "agent_protocol", "archive"],
    },
    Program {
        package: "vmm",
        binary: "lighter-vmm",
        profile: "vmm",
        rustflags: VMM_FLAGS,
        sources: &["api_server", "arch", "devices", "jailer", "vmm"],
    },
    Program {
        package: "vmm",
        binary: "lighter-machine",
        profile: "vmm",
        rustflags: VMM_FLAGS,
        sources: &["arch", "devices", "jailer", "vmm"],
    },
    Program {
        package: "jailer",
        binary: "lighter-jailer",
        profile: "agent",
        rustflags: VMM_FLAGS,
        sources: &["jailer"],
    },
    Program {
        package: "probe",
        binary: "probe",
        profile: "probe",
        rustflags: "-C target-feature=+crt-static -C relocation-model=static",
        sources: &["probe"],
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("the crate lies in the workspace")?;
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    println!("cargo::rerun-if-changed={}", workspace.join("resources/seccomp").display());
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for program in &PROGRAMS {
        for source in program.sources {
            for input in ["Cargo.toml", "build.rs", "src"] {
                let input = workspace.join(source).join(input);
                // One that is not there would count as changed.
                if input.exists() {
                    println!("cargo::rerun-if-changed={}", input.display());
                }
            }
        }
        let built = build(program, workspace, &out.join("target"))?;
        // Not over the last build's, which may be running.
        let fresh = out.join(program.binary).with_extension("new");
        std::fs::copy(&built, &fresh)?;
        std::fs::rename(&fresh, out.join(program.binary))?;
        std::fs::write(out.join(program.binary).with_extension("id"), id(&std::fs::read(&built)?))?;
    }
    Ok(())
}

/// A name for this content among the versions of one program, computed here so that no run has to.
fn id(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("{:016x}", hasher.finish())
}

/// A cargo of its own with a target directory of its own: the outer one holds the lock of the outer one's.
/// `--target` keeps the flags away from build scripts and macros.
fn build(program: &Program, workspace: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo.args(["build", "--quiet", "--locked", "--target", TARGET]);
    cargo.args(["--package", program.package, "--bin", program.binary, "--profile", program.profile]);
    cargo.arg("--target-dir").arg(target_dir);
    cargo.env("RUSTFLAGS", program.rustflags);
    // What the outer cargo set for this script must not reach the inner one.
    for variable in
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the build of {} ended with {status}", program.binary).into());
    }
    Ok(target_dir.join(TARGET).join(program.profile).join(program.binary))
}
