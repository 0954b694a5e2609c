//! Network address translation in an nftables table of our own; nobody else's rules are touched.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::subnet::Subnet;

/// Directories where administration programs lie, for a PATH that leaves them out.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Puts the table for the bridge in place, replacing what a crash may have left.
pub fn install(bridge: &str, subnet: &Subnet) -> io::Result<()> {
    nft(&rules(bridge, subnet))
}

/// Removes the table.
pub fn remove(bridge: &str) -> io::Result<()> {
    // Adding first makes deleting succeed whether it was there or not.
    nft(&format!("add table ip {bridge}\ndelete table ip {bridge}\n"))
}

/// The program `nft` is there.
pub fn is_available() -> bool {
    std::env::split_paths(&search_path()).any(|directory| directory.join("nft").is_file())
}

/// Guests' packets leave with the host's address; from outside only answers reach them; nobody forges a source.
fn rules(bridge: &str, subnet: &Subnet) -> String {
    format!(
        "add table ip {bridge}
delete table ip {bridge}
table ip {bridge} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != \"{bridge}\" masquerade
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{bridge}\" ip saddr != {subnet} drop
        iifname != \"{bridge}\" oifname \"{bridge}\" ct state != {{ established, related }} drop
    }}
}}
"
    )
}

fn nft(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .env("PATH", search_path())
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // The script is far smaller than a pipe, so this cannot wait for a reader.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = crate::text::printable(&output.stderr);
    Err(io::Error::other(format!("nft ended with {}: {said}", output.status)))
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:{SYSTEM_PATH}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_replace_what_is_there_and_name_only_our_bridge() {
        let rules = rules("lighter0", &"10.77.0.0/24".parse().unwrap());
        assert!(rules.starts_with("add table ip lighter0\ndelete table ip lighter0\n"));
        assert!(rules.contains("ip saddr 10.77.0.0/24 oifname != \"lighter0\" masquerade"));
    }
}
