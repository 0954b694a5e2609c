//! `--ulimit NAME=SOFT[:HARD]`.

/// Resource limits by the names that Docker gives them.
const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Open files where the user says nothing: the kernel's own hard limit of 4096 is too few for servers.
const DEFAULT_NOFILE: (u64, u64) = (1024, 524_288);

/// An option that is no limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--ulimit {text:?}: {reason}")]
pub struct UlimitError {
    text: String,
    reason: &'static str,
}

/// The limits as the agent takes them: name of the resource, soft, hard.
pub fn ulimits(options: &[String]) -> Result<Vec<(String, u64, u64)>, UlimitError> {
    let (soft, hard) = DEFAULT_NOFILE;
    let mut limits = vec![("RLIMIT_NOFILE".to_owned(), soft, hard)];
    for text in options {
        let limit = parse(text).map_err(|reason| UlimitError { text: text.clone(), reason })?;
        limits.retain(|(name, ..)| *name != limit.0);
        limits.push(limit);
    }
    Ok(limits)
}

fn parse(text: &str) -> Result<(String, u64, u64), &'static str> {
    let (name, values) =
        text.split_once('=').ok_or("write NAME=SOFT[:HARD], for example nofile=1024:4096")?;
    if !NAMES.contains(&name) {
        return Err("no resource has this name; setrlimit(2) lists them, for example nofile, nproc, core");
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| "a limit is a number, or -1 for none"),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err("the soft limit is above the hard one");
    }
    Ok((format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_both_limits_and_two_are_soft_and_hard() {
        let limits = ulimits(&["core=0".into(), "nofile=10:20".into(), "memlock=-1".into()]).unwrap();
        assert_eq!(
            limits,
            [
                ("RLIMIT_CORE".to_owned(), 0, 0),
                ("RLIMIT_NOFILE".to_owned(), 10, 20),
                ("RLIMIT_MEMLOCK".to_owned(), u64::MAX, u64::MAX)
            ]
        );
        assert_eq!(ulimits(&[]).unwrap(), [("RLIMIT_NOFILE".to_owned(), 1024, 524_288)]);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for text in ["nofile", "files=1", "nofile=x", "nofile=20:10", "nofile=1:2:3", "nofile="] {
            assert!(ulimits(&[text.into()]).is_err(), "{text}");
        }
    }
}
