//! Name servers: those that lighter asks for a guest, and the guest's `/etc/resolv.conf`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::spec::DnsSpec;

/// Where the agent answers in the guest, as Docker does.
const EMBEDDED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// Asked where the host has no server, as Docker does.
const FALLBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];
/// The host's configuration; the second one is what systemd-resolved hides behind its own loopback address.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// As many servers as a resolver asks (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;

/// Who is asked on behalf of a guest: `own`, the option `--dns`, or the host's, on its loopback too.
pub fn servers(own: &[IpAddr]) -> Vec<IpAddr> {
    servers_of(own, &texts())
}

/// The text for a guest, which asks lighter where `embedded`.
pub fn resolv_conf(dns: &DnsSpec, embedded: bool) -> String {
    text_of(dns, embedded, &texts())
}

fn texts() -> Vec<String> {
    FILES.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn servers_of(own: &[IpAddr], texts: &[String]) -> Vec<IpAddr> {
    let host = || texts.iter().map(|text| nameservers(text)).find(|servers| !servers.is_empty());
    let mut servers = if own.is_empty() { host().unwrap_or(FALLBACK.into()) } else { own.to_vec() };
    servers.truncate(MAX_SERVERS);
    servers
}

/// The host's servers that a guest itself can reach.
fn reachable(texts: &[String]) -> Vec<IpAddr> {
    let found = texts.iter().map(|text| {
        let servers = nameservers(text).into_iter();
        servers.filter(|address| address.is_ipv4() && !address.is_loopback()).collect::<Vec<_>>()
    });
    found.into_iter().find(|servers| !servers.is_empty()).unwrap_or(FALLBACK.into())
}

fn text_of(dns: &DnsSpec, embedded: bool, texts: &[String]) -> String {
    let servers = match (embedded, dns.servers.is_empty()) {
        (true, _) => vec![EMBEDDED],
        (false, true) => reachable(texts),
        (false, false) => dns.servers.clone(),
    };
    let mut text = String::new();
    for server in servers.iter().take(MAX_SERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    let host = |key: &str| -> Vec<String> {
        let lines = texts.first().map(|text| text.lines()).into_iter().flatten();
        lines
            .filter_map(|line| line.strip_prefix(key))
            .next_back()
            .into_iter()
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let search = if dns.search.is_empty() { host("search ") } else { dns.search.clone() };
    let mut options = if dns.options.is_empty() { host("options ") } else { dns.options.clone() };
    if embedded && !options.iter().any(|option| option.starts_with("ndots:")) {
        // A container's name is asked for as it is first.
        options.push("ndots:0".to_owned());
    }
    // `--dns-search .` means none at all.
    for (key, values) in
        [("search", search.into_iter().filter(|domain| domain != ".").collect()), ("options", options)]
    {
        if !Vec::is_empty(&values) {
            let _ = writeln!(text, "{key} {}", values.join(" "));
        }
    }
    text
}

fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse::<IpAddr>().ok())
        .filter(|address| !address.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.1.2.3\nnameserver ::1\nsearch a.example b.example\noptions edns0\n";

    fn text(dns: &DnsSpec, embedded: bool, texts: &[&str]) -> String {
        text_of(dns, embedded, &texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_guest_asks_lighter_first_for_the_name_as_it_is() {
        let expected = "nameserver 127.0.0.11\nsearch a.example b.example\noptions edns0 ndots:0\n";
        assert_eq!(text(&DnsSpec::default(), true, &[HOST]), expected);
        let dns = DnsSpec { search: vec![".".into()], options: vec!["ndots:2".into()], ..DnsSpec::default() };
        assert_eq!(text(&dns, true, &[HOST]), "nameserver 127.0.0.11\noptions ndots:2\n");
    }

    #[test]
    fn without_lighter_a_guest_asks_whom_it_can_reach() {
        let plain = DnsSpec::default();
        assert!(text(&plain, false, &[HOST]).starts_with("nameserver 10.1.2.3\nsearch"));
        let stub = "nameserver 127.0.0.53\n";
        assert_eq!(text(&plain, false, &[stub, "nameserver 10.0.0.1\n"]), "nameserver 10.0.0.1\n");
        assert_eq!(text(&plain, false, &[]), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        let own = DnsSpec { servers: vec!["192.0.2.1".parse().unwrap()], ..plain };
        assert_eq!(text(&own, false, &[stub]), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn lighter_itself_reaches_the_hosts_loopback() {
        let servers: Vec<_> = servers_of(&[], &[HOST.to_owned()]).iter().map(IpAddr::to_string).collect();
        assert_eq!(servers, ["127.0.0.53", "10.1.2.3", "::1"]);
        assert_eq!(servers_of(&["192.0.2.1".parse().unwrap()], &[HOST.to_owned()]).len(), 1);
        assert_eq!(servers_of(&[], &[]), FALLBACK);
    }
}
