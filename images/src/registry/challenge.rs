//! `WWW-Authenticate`: what a registry wants to know (RFC 9110 section 11.6.1).

/// A parsed challenge; only the two schemes that registries use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Fetch a token from `realm` first.
    Bearer {
        /// The token server.
        realm: String,
        /// What the token server calls this registry.
        service: Option<String>,
    },
    /// User and password with every request.
    Basic,
}

impl Challenge {
    /// The best challenge in the headers: a token server before a password.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut challenges: Vec<_> = headers.flat_map(parse_header).collect();
        challenges.sort_by_key(|challenge| matches!(challenge, Self::Basic));
        challenges.into_iter().next()
    }
}

fn parse_header(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    for part in split_outside_quotes(header) {
        let (scheme, parameter) = split_scheme(part);
        if let Some(scheme) = scheme {
            challenges.extend(current.take().and_then(build));
            current = Some((scheme.to_ascii_lowercase(), Vec::new()));
        }
        if let (Some((_, parameters)), Some((name, value))) = (&mut current, parameter.split_once('=')) {
            parameters.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    challenges.extend(current.and_then(build));
    challenges
}

fn build((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "bearer" => Some(Challenge::Bearer { realm: find("realm")?, service: find("service") }),
        "basic" => Some(Challenge::Basic),
        _ => None,
    }
}

/// `Bearer realm="x"` → (`Bearer`, `realm="x"`); `service="y"` → (none, `service="y"`).
fn split_scheme(part: &str) -> (Option<&str>, &str) {
    let part = part.trim();
    let word_end = part.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(part.len());
    let (word, rest) = part.split_at(word_end);
    if word.is_empty() || rest.trim_start().starts_with('=') {
        (None, part)
    } else {
        (Some(word), rest.trim())
    }
}

fn split_outside_quotes(header: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in header.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&header[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&header[start..]);
    parts
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(headers: &[&str]) -> Option<Challenge> {
        Challenge::parse(headers.iter().copied())
    }

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
    }

    #[test]
    fn challenges_of_real_registries_are_parsed() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(parse(&[hub]), bearer("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(parse(&[r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        assert_eq!(parse(&["bearer realm=https://a/t"]), bearer("https://a/t", None));
        assert_eq!(parse(&[r#"Basic realm="x", Bearer realm="https://a/t""#]), bearer("https://a/t", None));
        assert_eq!(
            parse(&["Basic", r#"Bearer realm = "https://a/t" , service=s"#]),
            bearer("https://a/t", Some("s"))
        );
        assert_eq!(parse(&[r#"Bearer realm="https://a/\"q\"""#]), bearer("https://a/\"q\"", None));
    }

    #[test]
    fn what_cannot_be_answered_is_no_challenge() {
        for header in ["", "Negotiate", "Bearer service=x", "=", ",,,", "\""] {
            assert_eq!(parse(&[header]), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(header in "\\PC{0,60}") {
            let _ = parse(&[&header]);
        }
    }
}
