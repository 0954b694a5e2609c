//! `/etc/resolv.conf` of a guest: the host's servers, as far as a guest can reach them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

/// Asked where the host has no server that a guest could reach, as Docker does.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
/// The host's configuration; the second one is what systemd-resolved hides behind its own loopback address.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// As many servers as a resolver asks (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

/// The text for a guest. `servers` (the option `--dns`) replaces the host's.
pub fn resolv_conf(servers: &[IpAddr]) -> String {
    let texts: Vec<String> =
        FILES.iter().filter_map(|path| std::fs::read_to_string(Path::new(path)).ok()).collect();
    from_texts(servers, &texts.iter().map(String::as_str).collect::<Vec<_>>())
}

fn from_texts(servers: &[IpAddr], texts: &[&str]) -> String {
    let own: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let found = texts.iter().map(|text| nameservers(text)).find(|servers| !servers.is_empty());
    let servers = match own.is_empty() {
        false => own,
        true => found.unwrap_or_else(|| FALLBACK.map(str::to_owned).into()),
    };
    let mut text = String::new();
    for server in servers.iter().take(MAX_SERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let first = texts.first().copied().unwrap_or_default();
    for line in first.lines().filter(|line| line.starts_with("search ") || line.starts_with("options ")) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Servers that are IPv4 addresses outside the host itself: guests have IPv4 only.
fn nameservers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() && !address.is_loopback() && !address.is_unspecified())
        .map(|address| address.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_servers_are_left_out_and_search_domains_kept() {
        let host = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.1.2.3\nnameserver ::1\nsearch a.example b.example\n";
        assert_eq!(from_texts(&[], &[host]), "nameserver 10.1.2.3\nsearch a.example b.example\n");
    }

    #[test]
    fn a_local_resolver_is_looked_behind_and_the_last_resort_is_public() {
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(from_texts(&[], &[stub, "nameserver 10.0.0.1\n"]), "nameserver 10.0.0.1\noptions edns0\n");
        assert_eq!(from_texts(&[], &[]), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
    }

    #[test]
    fn the_option_replaces_the_host() {
        let servers = ["192.0.2.1".parse().unwrap()];
        assert_eq!(from_texts(&servers, &["nameserver 10.1.2.3\n"]), "nameserver 192.0.2.1\n");
    }
}
